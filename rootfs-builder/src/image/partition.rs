// SPDX-License-Identifier: Apache-2.0
//! The partition table of a disk in its oldest form, the master boot record: one sector, four entries. It is what Kata's images have.
//!
//! Only block addresses are written; the places in cylinders, heads and sectors, which nothing has read for decades, say "too far".
//! Tables with extended partitions or GUIDs are refused rather than half understood.

use serde::Serialize;

/// What a table counts in.
pub const SECTOR: u64 = 512;
/// The type of a Linux file system, and of anything that belongs to one.
pub const LINUX: u8 = 0x83;
/// The most partitions that a table holds.
pub const MOST: usize = 4;

/// A table: the sector's 512 bytes.
pub type Sector = [u8; SECTOR as usize];

const SIGNATURE: usize = 440;
const ENTRIES: usize = 446;
const ENTRY: usize = 16;
const MAGIC: usize = 510;
/// A place beyond what cylinders can say.
const FAR: [u8; 3] = [0xfe, 0xff, 0xff];
/// Types that are chains of further tables.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The type of the one partition that hides a GUID table from old programs.
const PROTECTIVE: u8 = 0xee;

/// Why a table is none, or not one to be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    /// The sector does not end as a table does.
    #[error("There is no partition table")]
    NoTable,
    /// There are more partitions than fit.
    #[error("{0} partitions do not fit into a partition table; {MOST} do")]
    TooMany(usize),
    /// A partition is no whole number of sectors, or too far for the table's 32 bits.
    #[error("Partition {number} cannot begin at byte {start} with a length of {len}")]
    Place {
        /// Its number, from 1.
        number: usize,
        /// Where it begins.
        start: u64,
        /// Its length.
        len: u64,
    },
    /// A partition has nothing in it, or covers the table.
    #[error("Partition {number} is empty or begins on the partition table")]
    Nothing {
        /// Its number, from 1.
        number: usize,
    },
    /// A partition ends behind the disk.
    #[error("Partition {number} ends at byte {end}, the disk at {size}")]
    PastTheEnd {
        /// Its number, from 1.
        number: usize,
        /// Where it ends.
        end: u64,
        /// Where the disk ends.
        size: u64,
    },
    /// Two partitions share a sector.
    #[error("Partitions {first} and {second} overlap")]
    Overlap {
        /// The number of one of them.
        first: usize,
        /// The number of the other.
        second: usize,
    },
    /// A partition is of a type that leads to further tables, or is none to write.
    #[error("Partition {number} is of type {kind:#04x}, which is not supported")]
    Kind {
        /// Its number, from 1.
        number: usize,
        /// The type.
        kind: u8,
    },
    /// An entry's first byte is neither of the two that there are.
    #[error("Partition {number} has the impossible status {status:#04x}")]
    Status {
        /// Its number, from 1.
        number: usize,
        /// The byte.
        status: u8,
    },
    /// An entry is not used, and a later one is.
    #[error("Partition {number} is missing, though a later one is there")]
    Gap {
        /// Its number, from 1.
        number: usize,
    },
}

/// One partition. Its number is its place in the table, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Its first byte.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Its type, [`LINUX`] for one.
    #[serde(rename = "type")]
    pub kind: u8,
}

impl Partition {
    /// The byte behind it.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Table {
    /// The disk's signature, from which the kernel makes `PARTUUID`s; zero for none.
    pub signature: u32,
    /// The partitions, in the table's order.
    pub partitions: Vec<Partition>,
}

impl Table {
    /// The sector, for a disk of `size` bytes.
    pub fn to_sector(&self, size: u64) -> Result<Sector, PartitionError> {
        if self.partitions.len() > MOST {
            return Err(PartitionError::TooMany(self.partitions.len()));
        }
        let mut sector = [0; SECTOR as usize];
        sector[SIGNATURE..][..4].copy_from_slice(&self.signature.to_le_bytes());
        sector[MAGIC..].copy_from_slice(&[0x55, 0xaa]);
        for (index, partition) in self.partitions.iter().enumerate() {
            let (start, len) = (partition.start, partition.len);
            let place = || PartitionError::Place {
                number: index + 1,
                start,
                len,
            };
            if !start.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
                return Err(place());
            }
            let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).map_err(|_| place());
            let entry = &mut sector[ENTRIES + index * ENTRY..][..ENTRY];
            entry[1..4].copy_from_slice(&FAR);
            entry[4] = partition.kind;
            entry[5..8].copy_from_slice(&FAR);
            entry[8..12].copy_from_slice(&sectors(start)?.to_le_bytes());
            entry[12..16].copy_from_slice(&sectors(len)?.to_le_bytes());
        }
        self.check(size)?;
        Ok(sector)
    }

    /// Reads the table of a disk of `size` bytes.
    pub fn parse(sector: &Sector, size: u64) -> Result<Table, PartitionError> {
        if !is_table(sector) {
            return Err(PartitionError::NoTable);
        }
        let mut table = Table {
            signature: word(sector, SIGNATURE),
            partitions: Vec::new(),
        };
        for index in 0..MOST {
            let at = ENTRIES + index * ENTRY;
            let (status, kind) = (sector[at], sector[at + 4]);
            if kind == 0 {
                continue;
            }
            if index > table.partitions.len() {
                let number = table.partitions.len() + 1;
                return Err(PartitionError::Gap { number });
            }
            if status & 0x7f != 0 {
                let number = index + 1;
                return Err(PartitionError::Status { number, status });
            }
            table.partitions.push(Partition {
                start: u64::from(word(sector, at + 8)) * SECTOR,
                len: u64::from(word(sector, at + 12)) * SECTOR,
                kind,
            });
        }
        table.check(size)?;
        Ok(table)
    }

    /// Whether the partitions are such that a disk of `size` bytes can have them.
    fn check(&self, size: u64) -> Result<(), PartitionError> {
        for (index, partition) in self.partitions.iter().enumerate() {
            let number = index + 1;
            let kind = partition.kind;
            if kind == 0 || kind == PROTECTIVE || EXTENDED.contains(&kind) {
                return Err(PartitionError::Kind { number, kind });
            }
            if partition.start < SECTOR || partition.len == 0 {
                return Err(PartitionError::Nothing { number });
            }
            let end = partition.end();
            if end > size {
                return Err(PartitionError::PastTheEnd { number, end, size });
            }
            let before = self.partitions[..index].iter();
            let shares = |other: &Partition| other.start < end && partition.start < other.end();
            if let Some(first) = before.clone().position(shares) {
                let first = first + 1;
                return Err(PartitionError::Overlap {
                    first,
                    second: number,
                });
            }
        }
        Ok(())
    }
}

/// Whether a sector ends as a table does. So do the boot sectors of some file systems, which have no entries.
pub fn is_table(sector: &Sector) -> bool {
    sector[MAGIC..] == [0x55, 0xaa]
}

fn word(sector: &Sector, at: usize) -> u32 {
    u32::from_le_bytes([sector[at], sector[at + 1], sector[at + 2], sector[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn table(partitions: &[(u64, u64)]) -> Table {
        let partition = |&(start, len): &(u64, u64)| Partition {
            start,
            len,
            kind: LINUX,
        };
        Table {
            signature: 0x1234_5678,
            partitions: partitions.iter().map(partition).collect(),
        }
    }

    #[test]
    fn a_sector_is_as_it_has_always_been() {
        let sector = table(&[(MIB, 3 * MIB)]).to_sector(4 * MIB).unwrap();
        assert_eq!(sector[..440], [0; 440]);
        assert_eq!(sector[440..446], [0x78, 0x56, 0x34, 0x12, 0, 0]);
        let entry = [
            0, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff, 0, 8, 0, 0, 0, 24, 0, 0,
        ];
        assert_eq!(sector[446..462], entry);
        assert_eq!(sector[462..510], [0; 48]);
        assert_eq!(sector[510..], [0x55, 0xaa]);
    }

    #[test]
    fn nonsense_is_not_written() {
        let size = 8 * MIB;
        let four = [(MIB, 512), (2 * MIB, 512), (3 * MIB, 512), (4 * MIB, 512)];
        assert!(table(&four).to_sector(size).is_ok());
        let cases = [
            (
                vec![(0, MIB)],
                "Partition 1 is empty or begins on the partition table",
            ),
            (
                vec![(MIB, 0)],
                "Partition 1 is empty or begins on the partition table",
            ),
            (
                vec![(MIB, 8 * MIB)],
                "Partition 1 ends at byte 9437184, the disk at 8388608",
            ),
            (
                vec![(MIB, MIB), (MIB + 512, 512)],
                "Partitions 1 and 2 overlap",
            ),
            (
                vec![(2 * MIB, MIB), (MIB, MIB + 512)],
                "Partitions 1 and 2 overlap",
            ),
            (
                vec![(MIB + 1, MIB)],
                "Partition 1 cannot begin at byte 1048577 with a length of 1048576",
            ),
            (
                vec![(MIB, 2 << 40)],
                "Partition 1 cannot begin at byte 1048576 with a length of 2199023255552",
            ),
            (
                vec![(MIB, 512); 5],
                "5 partitions do not fit into a partition table; 4 do",
            ),
        ];
        for (partitions, message) in cases {
            let error = table(&partitions).to_sector(size).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn what_is_no_plain_table_is_refused() {
        let good = table(&[(MIB, MIB), (2 * MIB, MIB)])
            .to_sector(8 * MIB)
            .unwrap();
        let cases = [
            (510, 0, PartitionError::NoTable),
            (
                450,
                0x0f,
                PartitionError::Kind {
                    number: 1,
                    kind: 0x0f,
                },
            ),
            (
                466,
                0xee,
                PartitionError::Kind {
                    number: 2,
                    kind: 0xee,
                },
            ),
            (
                462,
                0x41,
                PartitionError::Status {
                    number: 2,
                    status: 0x41,
                },
            ),
            (450, 0, PartitionError::Gap { number: 1 }),
            (
                455,
                16,
                PartitionError::Overlap {
                    first: 1,
                    second: 2,
                },
            ),
        ];
        for (at, byte, expected) in cases {
            let mut sector = good;
            sector[at] = byte;
            assert_eq!(Table::parse(&sector, 8 * MIB).unwrap_err(), expected);
        }
        let mut bootable = good;
        bootable[446] = 0x80;
        assert!(Table::parse(&bootable, 8 * MIB).is_ok());
        assert!(Table::parse(&good, 3 * MIB - 1).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            signature: u32,
            kind in 0x80..=0x84_u8,
            pieces in prop::collection::vec((1..10_000_u64, 1..10_000_u64), 0..=4),
            room in 0..1000_u64,
        ) {
            let mut end = 1;
            let mut table = Table { signature, partitions: Vec::new() };
            for (gap, len) in pieces {
                table.partitions.push(Partition { start: (end + gap) * SECTOR, len: len * SECTOR, kind });
                end += gap + len;
            }
            let size = (end + room) * SECTOR;
            let sector = table.to_sector(size).unwrap();
            prop_assert_eq!(Table::parse(&sector, size).unwrap(), table);
        }

        #[test]
        fn any_sector_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 512), size: u64, kinds: [bool; 4]) {
            let mut sector: Sector = bytes.try_into().unwrap();
            sector[510..].copy_from_slice(&[0x55, 0xaa]);
            for (index, used) in kinds.into_iter().enumerate() {
                sector[446 + index * 16] &= 0x80;
                sector[450 + index * 16] = if used { LINUX } else { 0 };
            }
            if let Ok(table) = Table::parse(&sector, size) {
                prop_assert!(table.partitions.iter().all(|partition| partition.end() <= size));
                prop_assert_eq!(Table::parse(&table.to_sector(size).unwrap(), size).unwrap(), table);
            }
        }
    }
}
