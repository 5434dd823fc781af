// SPDX-License-Identifier: Apache-2.0
//! The block of information that makes a kernel map an emulated nvdimm's file system instead of copying it: `struct nd_pfn_sb` of the
//! kernel's `drivers/nvdimm/pfn.h`, at byte 4096 of the device. It says that the data begins at 2 MiB and that the kernel is to keep
//! its page structures in memory.
//!
//! Only ACPI's nvdimms need it, and a disk that has it is still a disk to virtio-blk.

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

/// Where the block lies on the device.
pub const OFFSET: u64 = 4096;
/// Its size.
pub const SIZE: usize = 4096;
/// Where the data begins, and what the kernel maps at a time: 2 MiB.
pub const DATA_OFFSET: u64 = 2 << 20;

/// The block's bytes.
pub type Block = [u8; SIZE];

/// What it begins with.
const SIGNATURE: &[u8; 16] = b"NVDIMM_PFN_INFO\0";
/// Where its checksum lies.
const CHECKSUM: usize = SIZE - 8;
/// The version that Kata's images have, 1.2: the first to say an alignment.
const VERSION: (u16, u16) = (1, 2);
/// Page structures are kept in memory (`PFN_MODE_RAM`), so none are on the device.
const MODE_RAM: u32 = 1;
/// Page structures are kept on the device (`PFN_MODE_PMEM`).
const MODE_PMEM: u32 = 2;

/// Why a block is not what a kernel would take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DaxError {
    /// It does not begin with the signature.
    #[error("There is no DAX information block")]
    NoSignature,
    /// The checksum is wrong, so the kernel would not see the block.
    #[error(
        "The DAX information block's checksum is {stored:#018x}, and should be {computed:#018x}"
    )]
    Checksum {
        /// What it says.
        stored: u64,
        /// What it should say.
        computed: u64,
    },
    /// A field has a value that the kernel refuses.
    #[error("The DAX information block has {value:#x} for its {field}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

/// What the block says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InfoBlock {
    /// The block's own identity.
    #[serde(serialize_with = "as_text")]
    pub uuid: [u8; 16],
    /// The namespace's identity, which is zero without labels.
    #[serde(serialize_with = "as_text")]
    pub parent_uuid: [u8; 16],
    /// Always zero so far.
    pub flags: u32,
    /// The version, major and minor.
    pub version: (u16, u16),
    /// Where the data begins, from the device's start.
    pub data_offset: u64,
    /// The number of page structures on the device.
    pub pages: u64,
    /// Where page structures are kept: 1 in memory, 2 on the device.
    pub mode: u32,
    /// Bytes at the device's start that are not used.
    pub start_pad: u32,
    /// Bytes at its end that are not used.
    pub end_trunc: u32,
    /// What mappings are aligned to.
    pub align: u32,
}

impl InfoBlock {
    /// The block of our images. Its identity is made from a digest of what the image holds, so that equal images are equal.
    pub fn new(content: &[u8; 32]) -> InfoBlock {
        InfoBlock {
            uuid: uuid(content),
            parent_uuid: [0; 16],
            flags: 0,
            version: VERSION,
            data_offset: DATA_OFFSET,
            pages: 0,
            mode: MODE_RAM,
            start_pad: 0,
            end_trunc: 0,
            align: DATA_OFFSET as u32,
        }
    }

    /// The block's bytes.
    pub fn to_block(&self) -> Block {
        let mut block = [0; SIZE];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, SIGNATURE);
        put(16, &self.uuid);
        put(32, &self.parent_uuid);
        put(48, &self.flags.to_le_bytes());
        put(52, &self.version.0.to_le_bytes());
        put(54, &self.version.1.to_le_bytes());
        put(56, &self.data_offset.to_le_bytes());
        put(64, &self.pages.to_le_bytes());
        put(72, &self.mode.to_le_bytes());
        put(76, &self.start_pad.to_le_bytes());
        put(80, &self.end_trunc.to_le_bytes());
        put(84, &self.align.to_le_bytes());
        let checksum = fletcher64(&block);
        block[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    /// Reads a block, with the checks that the kernel makes.
    pub fn parse(block: &Block) -> Result<InfoBlock, DaxError> {
        if !is_block(block) {
            return Err(DaxError::NoSignature);
        }
        let stored = u64::from_le_bytes(array(block, CHECKSUM));
        let computed = fletcher64(block);
        if stored != computed {
            return Err(DaxError::Checksum { stored, computed });
        }
        let half = |at| u16::from_le_bytes(array(block, at));
        let word = |at| u32::from_le_bytes(array(block, at));
        let long = |at| u64::from_le_bytes(array(block, at));
        let info = InfoBlock {
            uuid: array(block, 16),
            parent_uuid: array(block, 32),
            flags: word(48),
            version: (half(52), half(54)),
            data_offset: long(56),
            pages: long(64),
            mode: word(72),
            start_pad: word(76),
            end_trunc: word(80),
            align: word(84),
        };
        info.check()?;
        Ok(info)
    }

    fn check(&self) -> Result<(), DaxError> {
        let field = |field, value: u64| Err(DaxError::Field { field, value });
        if self.parent_uuid != [0; 16] {
            // A namespace without labels has no identity, and the block must name the namespace that it is for.
            return field("parent's identity", u64::from(self.parent_uuid[0]));
        }
        if !matches!(self.mode, MODE_RAM | MODE_PMEM) {
            return field("mode", self.mode.into());
        }
        // Before version 1.2 the alignment is not said.
        if self.version.1 >= 2 && !self.align.is_power_of_two() {
            return field("alignment", self.align.into());
        }
        let align = u64::from(self.align.max(OFFSET as u32));
        if self.data_offset < OFFSET + SIZE as u64 || !self.data_offset.is_multiple_of(align) {
            return field("data offset", self.data_offset);
        }
        Ok(())
    }

    /// The block's identity in the usual form.
    pub fn uuid_text(&self) -> String {
        text(&self.uuid)
    }
}

/// Whether a block begins as one of these.
pub fn is_block(block: &Block) -> bool {
    block.starts_with(SIGNATURE)
}

/// An identity from a digest, marked as one of no standard scheme (RFC 9562, version 8).
fn uuid(content: &[u8; 32]) -> [u8; 16] {
    let digest = Sha256::new()
        .chain_update(SIGNATURE)
        .chain_update(content)
        .finalize();
    let mut uuid = array::<16>(&digest, 0);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

fn text(uuid: &[u8; 16]) -> String {
    let hex = guest_kernel::cache::hex(uuid);
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

fn as_text<S: Serializer>(uuid: &[u8; 16], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text(uuid))
}

/// The checksum of a block, as if the field that it stands in were zero: a sum of its words, and a sum of those sums.
fn fletcher64(block: &Block) -> u64 {
    let (mut low, mut high) = (0_u32, 0_u64);
    for (index, word) in block.as_chunks::<4>().0.iter().enumerate() {
        if index * 4 < CHECKSUM {
            low = low.wrapping_add(u32::from_le_bytes(*word));
        }
        high = high.wrapping_add(low.into());
    }
    high << 32 | u64::from(low)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signed(mut block: Block) -> Block {
        let checksum = fletcher64(&block);
        block[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    #[test]
    fn the_checksum_is_the_kernels() {
        // By hand: n words of one sum to n, and their sums to 1 + 2 + … + n; the last two words count as zero.
        let mut block = [0; SIZE];
        block.as_chunks_mut::<4>().0.fill([1, 0, 0, 0]);
        let words = (SIZE / 4 - 2) as u64;
        let sums = words * (words + 1) / 2 + 2 * words;
        assert_eq!(fletcher64(&block), sums << 32 | words);
        // Words that overflow the low half do so without a carry.
        let mut block = [0; SIZE];
        block[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        block[4] = 2;
        let sums = u64::from(u32::MAX) + (SIZE / 4 - 1) as u64;
        assert_eq!(fletcher64(&block), sums << 32 | 1);
    }

    #[test]
    fn fields_lie_where_the_kernel_looks() {
        let block = InfoBlock::new(&[7; 32]).to_block();
        assert_eq!(&block[..16], b"NVDIMM_PFN_INFO\0");
        assert_eq!(block[32..52], [0; 20]);
        assert_eq!(block[52..56], [1, 0, 2, 0]);
        assert_eq!(block[56..64], [0, 0, 0x20, 0, 0, 0, 0, 0]);
        assert_eq!(block[64..76], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(block[76..88], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0]);
        assert_eq!(block[88..CHECKSUM], [0; CHECKSUM - 88]);
    }

    #[test]
    fn a_block_that_the_kernel_would_not_take_is_refused() {
        let good = InfoBlock::new(&[7; 32]).to_block();
        assert!(InfoBlock::parse(&good).is_ok());
        let change = |at: usize, byte: u8| {
            let mut block = good;
            block[at] = byte;
            block
        };
        let parse = |block: Block| InfoBlock::parse(&block).unwrap_err().to_string();
        assert_eq!(parse(change(0, b'X')), "There is no DAX information block");
        assert!(parse(change(100, 1)).contains("checksum is 0x"));
        for (at, byte, field) in [
            (40, 1, "parent"),
            (72, 3, "mode"),
            (84, 1, "alignment"),
            (57, 1, "data offset"),
            (58, 0, "data offset"),
        ] {
            let error = parse(signed(change(at, byte)));
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn the_identity_follows_the_content() {
        let one = InfoBlock::new(&[1; 32]);
        assert_eq!(one, InfoBlock::new(&[1; 32]));
        assert_ne!(one.uuid, InfoBlock::new(&[2; 32]).uuid);
        let text = one.uuid_text();
        assert_eq!((text.len(), &text[14..15]), (36, "8"));
        let json = serde_json::to_value(&one).unwrap();
        assert_eq!(json["uuid"], text);
    }

    proptest! {
        #[test]
        fn any_block_is_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), SIZE), good: bool) {
            bytes[..16].copy_from_slice(SIGNATURE);
            bytes[32..48].fill(0);
            let mut block: Block = bytes.try_into().unwrap();
            if good {
                block = signed(block);
            }
            let parsed = InfoBlock::parse(&block);
            prop_assert!(good || parsed.is_err());
        }

        #[test]
        fn a_changed_byte_is_noticed(at in 0..SIZE, change in 1..=255_u8) {
            let mut block = InfoBlock::new(&[3; 32]).to_block();
            block[at] ^= change;
            prop_assert!(InfoBlock::parse(&block).is_err());
        }
    }
}
