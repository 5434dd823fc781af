// SPDX-License-Identifier: Apache-2.0
//! Disks as util-linux sees them, and disks with something wrong.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use proptest::prelude::*;

use super::*;

const ROOT: u64 = 5 * MIB + 4096;
const HASH: u64 = 45_056;

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    /// A root with a hole in its middle, and something that stands for its tree.
    fn new() -> Files {
        let dir = tempfile::tempdir().unwrap();
        let files = Files { dir };
        let mut root = vec![0x11; ROOT as usize];
        root[MIB as usize..4 * MIB as usize].fill(0);
        fs::write(files.path("root"), root).unwrap();
        fs::write(files.path("hash"), vec![0x22; HASH as usize]).unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, hash: bool, layout: &Layout) -> Written {
        let tree = self.path("hash");
        let tree = hash.then_some(tree.as_path());
        write(&self.path("root"), tree, layout, &self.path("disk")).unwrap()
    }

    fn read(&self) -> Result<Parts, DiskError> {
        read(&self.path("disk"))
    }

    fn set(&self, at: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(self.path("disk")).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    /// What partx, of util-linux, sees from a place of the disk on: starts and sectors.
    fn partx(&self, offset: u64) -> Vec<(u64, u64)> {
        let part = self.path("part");
        let disk = fs::read(self.path("disk")).unwrap();
        fs::write(&part, &disk[offset as usize..]).unwrap();
        let output = Command::new("partx")
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .args(["--raw", "--noheadings", "--output", "START,SECTORS"])
            .arg(&part)
            .output()
            .expect("this test needs partx, of util-linux");
        let text = String::from_utf8(output.stdout).unwrap();
        let number = |word: Option<&str>| word.unwrap().parse().unwrap();
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            (number(words.next()), number(words.next()))
        };
        text.lines().map(line).collect()
    }
}

#[test]
fn a_mapped_disk_is_two_disks_in_one() {
    let files = Files::new();
    let written = files.write(true, &Layout::dax());
    let root = Extent {
        offset: 3 * MIB,
        len: ROOT,
    };
    // 3 MiB and a little over 5 are a little over 8, so the tree begins at 9.
    let hash = Extent {
        offset: 9 * MIB,
        len: HASH,
    };
    assert_eq!(
        written,
        Written {
            size: 10 * MIB,
            root,
            hash: Some(hash)
        }
    );
    let sectors = |at: u64| at / 512;
    let seen = |from: u64| {
        [root, hash]
            .map(|part| (sectors(part.offset - from), sectors(part.len)))
            .to_vec()
    };
    assert_eq!(files.partx(0), seen(0));
    assert_eq!(files.partx(2 * MIB), seen(2 * MIB));
    let parts = files.read().unwrap();
    assert_eq!(
        parts
            .partitions
            .iter()
            .map(|p| (p.start, p.len))
            .collect::<Vec<_>>(),
        [(root.offset, root.len), (hash.offset, hash.len)]
    );
    assert_eq!(parts.dax.unwrap().data_offset, 2 * MIB);
    assert_ne!(parts.signature, 0);
    let disk = fs::read(files.path("disk")).unwrap();
    let content = |part: Extent| &disk[part.offset as usize..][..part.len as usize];
    assert!(content(root) == fs::read(files.path("root")).unwrap());
    assert!(content(hash) == fs::read(files.path("hash")).unwrap());
}

#[test]
fn a_plain_disk_begins_at_one_mebibyte() {
    let files = Files::new();
    let written = files.write(false, &Layout::plain());
    assert_eq!(written.size, MIB + ROOT);
    assert_eq!(files.partx(0), [(2048, ROOT / 512)]);
    let parts = files.read().unwrap();
    assert_eq!((parts.dax, parts.partitions.len()), (None, 1));
    let disk = fs::read(files.path("disk")).unwrap();
    assert!(disk[512..MIB as usize].iter().all(|byte| *byte == 0));
}

#[test]
fn an_extension_has_its_tree_in_the_second_partition() {
    let files = Files::new();
    let written = files.write(true, &Layout::extension());
    assert_eq!(written.hash.unwrap().offset, 7 * MIB);
    assert_eq!(files.partx(0), [(2048, ROOT / 512), (7 * 2048, HASH / 512)]);
}

#[test]
fn sizes_are_aligned_and_holes_kept() {
    let files = Files::new();
    let written = files.write(true, &Layout::dax().aligned(MEMORY_SECTION));
    assert_eq!(written.size, MEMORY_SECTION);
    let metadata = fs::metadata(files.path("disk")).unwrap();
    assert_eq!(metadata.size(), MEMORY_SECTION);
    // 2 MiB of the root, its tree and the heads; file systems add their own blocks.
    assert!(metadata.blocks() * 512 < 3 * MIB, "{}", metadata.blocks());
    // A root that is no whole number of blocks gets a partition that is.
    fs::write(files.path("root"), vec![1; 5000]).unwrap();
    let written = files.write(false, &Layout::plain());
    assert_eq!((written.root.len, written.size), (8192, MIB + 8192));
}

#[test]
fn equal_contents_give_equal_disks() {
    let (one, two) = (Files::new(), Files::new());
    one.write(true, &Layout::dax());
    two.write(true, &Layout::dax());
    let first = fs::read(one.path("disk")).unwrap();
    assert!(first == fs::read(two.path("disk")).unwrap());
    // What was there before does not show through.
    one.write(false, &Layout::dax());
    one.write(true, &Layout::dax());
    assert!(first == fs::read(one.path("disk")).unwrap());
    fs::write(two.path("hash"), vec![0x23; HASH as usize]).unwrap();
    two.write(true, &Layout::dax());
    let (one, two) = (one.read().unwrap(), two.read().unwrap());
    assert_ne!(one.signature, two.signature);
    assert_ne!(one.dax, two.dax);
}

#[test]
fn layouts_that_kernels_do_not_take_are_refused_with_the_reason() {
    let files = Files::new();
    for (layout, text) in [
        (
            Layout::dax().aligned(MIB),
            "only to a multiple of 2097152: the kernel maps an nvdimm 2 MiB at a time",
        ),
        (Layout::dax().aligned(0), "aligned to 0 bytes"),
        (Layout::plain().aligned(512), "only to a multiple of 4096"),
        (
            Layout::plain().aligned(1 << 63),
            "larger than a partition table can say",
        ),
    ] {
        let error = write(&files.path("root"), None, &layout, &files.path("disk")).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(text), "{source}");
    }
}

#[test]
fn the_reason_of_an_alignment_is_told() {
    let cases = [
        (
            Layout::dax(),
            "Its size is a multiple of 2 MiB: the kernel maps",
        ),
        (
            Layout::dax().aligned(MEMORY_SECTION),
            "128 MiB: Kata plugs memory",
        ),
        (
            Layout::dax().aligned(4 * MIB),
            "4 MiB, as asked for; 2 MiB are enough",
        ),
        (
            Layout::plain(),
            "Its size is a multiple of 4 KiB: file systems",
        ),
        (
            Layout::plain().aligned(MIB),
            "1 MiB, as asked for; 4 KiB are enough",
        ),
    ];
    for (layout, text) in cases {
        assert!(layout.reason().contains(text), "{}", layout.reason());
    }
}

#[test]
fn empty_parts_and_the_disk_itself_are_refused() {
    let files = Files::new();
    fs::write(files.path("empty"), "").unwrap();
    let (root, empty) = (files.path("root"), files.path("empty"));
    let plain = Layout::plain();
    let error = write(&root, Some(&empty), &plain, &files.path("disk")).unwrap_err();
    assert!(error.to_string().ends_with("empty is empty"), "{error}");
    let error = write(&root, None, &plain, &root).unwrap_err();
    assert!(
        error.to_string().ends_with("root cannot be made of itself"),
        "{error}"
    );
    assert_eq!(fs::metadata(&root).unwrap().len(), ROOT);
    let error = write(&files.path("gone"), None, &plain, &files.path("disk")).unwrap_err();
    assert!(error.to_string().starts_with("Cannot open"), "{error}");
}

#[test]
fn what_disagrees_is_said() {
    let broken = |at: u64, byte: u8| {
        let files = Files::new();
        files.write(false, &Layout::dax());
        files.set(at, &[byte]);
        let error = files.read().unwrap_err();
        let source = std::error::Error::source(&error);
        format!(
            "{error}: {}",
            source.map(ToString::to_string).unwrap_or_default()
        )
    };
    assert!(
        broken(4096 + 20, 0).contains("cannot be mapped: The DAX information block's checksum")
    );
    let second = 2 * MIB;
    let text = broken(second + 511, 0);
    assert!(
        text.contains("bad partition table at byte 2097152: There is no partition table"),
        "{text}"
    );
    let text = broken(second + 454, 16);
    let said =
        "disagree: at byte 0 3145728+5246976 (type 83), at byte 2097152 3153920+5246976 (type 83)";
    assert!(text.contains(said), "{text}");
    let text = broken(second + 450, 7);
    assert!(text.contains("(type 07)"), "{text}");
    let text = broken(450, 0xee);
    assert!(
        text.contains("at byte 0: Partition 1 is of type 0xee"),
        "{text}"
    );
}

#[test]
fn a_cut_disk_is_refused() {
    let files = Files::new();
    files.write(false, &Layout::dax());
    let disk = File::options()
        .write(true)
        .open(files.path("disk"))
        .unwrap();
    disk.set_len(3 * MIB + ROOT).unwrap();
    let error = files.read().unwrap_err();
    assert!(matches!(error, DiskError::Size { .. }), "{error}");
    disk.set_len(8 * MIB).unwrap();
    let error = files.read().unwrap_err();
    assert!(
        matches!(error, DiskError::Table { offset: 0, .. }),
        "{error}"
    );
}

#[test]
fn a_lost_information_block_is_noticed() {
    let files = Files::new();
    files.write(false, &Layout::dax());
    files.set(4096, b"X");
    let error = files.read().unwrap_err();
    assert!(
        matches!(
            error,
            DiskError::Dax {
                source: DaxError::NoSignature,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_file_system_by_itself_has_no_partitions() {
    let files = Files::new();
    let parts = read(&files.path("root")).unwrap();
    assert_eq!(
        (parts.size, parts.partitions.len(), parts.dax),
        (ROOT, 0, None)
    );
    fs::write(files.path("root"), "short").unwrap();
    assert_eq!(read(&files.path("root")).unwrap().partitions, []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_written_is_read(root in 1..3 * MIB, hash in prop::option::of(1..2 * MIB), dax: bool, factor in 1..4_u64) {
        let files = Files::new();
        File::create(files.path("root")).unwrap().set_len(root).unwrap();
        let tree = files.path("hash");
        if let Some(len) = hash {
            File::create(&tree).unwrap().set_len(len).unwrap();
        }
        let layout = if dax { Layout::dax() } else { Layout::plain() };
        let layout = layout.aligned(layout.align * factor);
        let tree = hash.map(|_| tree.as_path());
        let written = write(&files.path("root"), tree, &layout, &files.path("disk")).unwrap();
        let parts = files.read().unwrap();
        prop_assert_eq!(parts.dax.is_some(), dax);
        prop_assert_eq!(parts.size, written.size);
        prop_assert!(written.size.is_multiple_of(layout.align));
        let expected: Vec<Extent> = std::iter::once(written.root).chain(written.hash).collect();
        let found: Vec<Extent> = parts.partitions.iter().map(|p| Extent { offset: p.start, len: p.len }).collect();
        prop_assert!(found.iter().all(|part| part.offset.is_multiple_of(MIB) && part.len.is_multiple_of(BLOCK)));
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn any_head_is_read_or_refused(at in 0..3 * MIB, bytes in prop::collection::vec(any::<u8>(), 1..600)) {
        let files = Files::new();
        fs::write(files.path("root"), [1; 5000]).unwrap();
        files.write(true, &Layout::dax());
        files.set(at, &bytes);
        let _ = files.read();
    }
}
