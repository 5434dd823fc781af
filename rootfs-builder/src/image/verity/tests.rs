// SPDX-License-Identifier: Apache-2.0
//! veritysetup's trees are ours, to the byte; changes anywhere are found.

use std::fs;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// Data of so many blocks, each different, and places for its tree.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new(blocks: u32) -> Files {
        let dir = tempfile::tempdir().unwrap();
        let block = |number: u32| number.to_le_bytes().repeat(1024);
        let data: Vec<u8> = (1..=blocks).flat_map(block).collect();
        fs::write(dir.path().join("data"), data).unwrap();
        Files { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn format(&self, salt: &[u8]) -> Verity {
        format(&self.path("data"), salt, &self.path("hash")).unwrap()
    }

    fn verify(&self, verity: &Verity) -> Result<(), VerityError> {
        verify((&self.path("data"), 0), (&self.path("hash"), 0), verity)
    }

    fn flip(&self, name: &str, at: u64) {
        let file = File::options()
            .read(true)
            .write(true)
            .open(self.path(name))
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    }

    /// veritysetup with our options, and whether it succeeded.
    fn veritysetup(
        &self,
        verb: &str,
        verity: &Verity,
        hash: &str,
        root: Option<String>,
    ) -> (bool, String) {
        let salt = guest_kernel::cache::hex(&verity.salt);
        let output = Command::new("veritysetup")
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .args([
                verb,
                "--no-superblock",
                "--hash=sha256",
                "--data-block-size=4096",
            ])
            .arg("--hash-block-size=4096")
            .arg(format!("--data-blocks={}", verity.data_blocks))
            .arg(format!(
                "--salt={}",
                if salt.is_empty() { "-" } else { &salt }
            ))
            .args([self.path("data"), self.path(hash)])
            .args(root)
            .output()
            .expect("this test needs veritysetup, of cryptsetup-bin");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text)
    }
}

/// Around the sizes at which a tree gets another block or another level.
const SIZES: [u32; 7] = [1, 2, 127, 128, 129, 256, 16_385];

#[test]
fn veritysetup_makes_the_same_tree_and_believes_ours() {
    for blocks in SIZES {
        let files = Files::new(blocks);
        let verity = files.format(&[1, 2, 0xfe]);
        assert_eq!(verity.data_blocks, u64::from(blocks));
        let (good, text) = files.veritysetup("format", &verity, "theirs", None);
        assert!(good, "{text}");
        let root = guest_kernel::cache::hex(&verity.root_hash);
        assert!(text.contains(&root), "{blocks} blocks: {text}");
        let ours = fs::read(files.path("hash")).unwrap();
        assert!(
            ours == fs::read(files.path("theirs")).unwrap(),
            "{blocks} blocks"
        );
        assert_eq!(ours.len() as u64, verity.hash_size());
        let (good, text) = files.veritysetup("verify", &verity, "hash", Some(root));
        assert!(good, "{blocks} blocks: {text}");
        files.verify(&verity).unwrap();
    }
}

#[test]
fn salts_of_any_length_that_the_kernel_takes() {
    for length in [0, 1, 32, 256] {
        let files = Files::new(130);
        let verity = files.format(&vec![7; length]);
        let (good, text) = files.veritysetup("format", &verity, "theirs", None);
        assert!(
            good && text.contains(&guest_kernel::cache::hex(&verity.root_hash)),
            "{length}"
        );
        files.verify(&verity).unwrap();
    }
    let files = Files::new(1);
    let error = format(&files.path("data"), &[0; 257], &files.path("hash")).unwrap_err();
    assert!(matches!(error, VerityError::Salt { length: 257, .. }));
}

#[test]
fn a_flipped_bit_in_the_data_is_named() {
    for (blocks, block) in [(1, 0), (129, 0), (129, 128), (300, 257)] {
        let files = Files::new(blocks);
        let verity = files.format(b"salt");
        files.flip("data", block * 4096 + 17);
        let error = files.verify(&verity).unwrap_err();
        let text = format!("block {block}, at byte {}, differs", block * 4096);
        assert!(error.to_string().ends_with(&text), "{error}");
        let root = guest_kernel::cache::hex(&verity.root_hash);
        assert!(!files.veritysetup("verify", &verity, "hash", Some(root)).0);
    }
}

#[test]
fn a_flipped_bit_in_the_tree_is_named() {
    // Three levels: the top is block 0, the next blocks 1 and 2, and the lowest the 129 after them. The last of each is read last.
    let files = Files::new(16_385);
    let verity = files.format(b"salt");
    for (at, level, block) in [
        (0, 2, 0),
        (1, 1, 0),
        (2, 1, 1),
        (3, 0, 0),
        (4, 0, 1),
        (131, 0, 128),
    ] {
        files.flip("hash", at * 4096);
        let error = files.verify(&verity).unwrap_err();
        let found = match error {
            VerityError::Hash {
                level,
                block,
                offset,
                ..
            } => (level, block, offset),
            other => panic!("{other}"),
        };
        assert_eq!(found, (level, block, at * 4096));
        files.flip("hash", at * 4096);
    }
}

#[test]
fn a_wrong_root_hash_or_salt_is_found() {
    let files = Files::new(3);
    let verity = files.format(b"salt");
    let mut other = verity.clone();
    other.root_hash[31] ^= 1;
    assert!(matches!(
        files.verify(&other),
        Err(VerityError::Hash { level: 0, .. })
    ));
    let other = Verity {
        salt: b"sal".to_vec(),
        ..verity
    };
    assert!(files.verify(&other).is_err());
}

#[test]
fn data_and_tree_may_lie_in_one_file() {
    let files = Files::new(200);
    let verity = files.format(b"s");
    let parts = [
        vec![9; 1000],
        fs::read(files.path("data")).unwrap(),
        vec![8; 24],
        fs::read(files.path("hash")).unwrap(),
    ];
    let disk = files.path("disk");
    fs::write(&disk, parts.concat()).unwrap();
    let hash = 1000 + 200 * 4096 + 24;
    verify((&disk, 1000), (&disk, hash), &verity).unwrap();
    files.flip("disk", 1000 + 5 * 4096);
    let error = verify((&disk, 1000), (&disk, hash), &verity).unwrap_err();
    assert!(
        matches!(
            error,
            VerityError::Data {
                block: 5,
                offset: 21_480,
                ..
            }
        ),
        "{error}"
    );
    let error = verify((&disk, 1000), (&disk, hash + 1), &verity).unwrap_err();
    assert!(matches!(error, VerityError::Short { .. }), "{error}");
}

#[test]
fn data_that_is_not_whole_blocks_is_refused() {
    let files = Files::new(1);
    for size in [0, 4095, 4097] {
        fs::write(files.path("data"), vec![0; size]).unwrap();
        let error = format(&files.path("data"), b"", &files.path("hash")).unwrap_err();
        assert!(matches!(error, VerityError::Size { .. }), "{error}");
    }
    let error = format(&files.path("gone"), b"", &files.path("hash")).unwrap_err();
    assert!(error.to_string().ends_with("gone"));
}

fn example() -> Verity {
    Verity {
        root_hash: [0xab; 32],
        salt: vec![0x01, 0x2f],
        data_blocks: 300,
        data_block_size: 4096,
        hash_block_size: 4096,
    }
}

#[test]
fn parameters_are_written_as_the_words_have_them() {
    let root = "ab".repeat(32);
    let params = format!(
        "root_hash={root},salt=012f,data_blocks=300,data_block_size=4096,hash_block_size=4096"
    );
    assert_eq!(example().params(), params);
    let table =
        format!("x,,,ro,0 2400 verity 1 /dev/vda1 /dev/vda2 4096 4096 300 0 sha256 {root} 012f");
    assert_eq!(example().dm_create("x", "/dev/vda1", "/dev/vda2"), table);
    let bare = Verity {
        salt: Vec::new(),
        ..example()
    };
    assert!(bare.dm_create("x", "a", "b").ends_with(" -"));
    assert_eq!(Verity::parse_params(&bare.params()).unwrap(), bare);
}

#[test]
fn parameters_in_documents_are_checked() {
    let json = serde_json::to_value(example()).unwrap();
    assert_eq!(json["salt"], "012f");
    assert_eq!(
        serde_json::from_value::<Verity>(json.clone()).unwrap(),
        example()
    );
    for (key, value) in [
        ("root_hash", serde_json::json!("ab")),
        ("salt", "0".into()),
        ("data_blocks", 0.into()),
    ] {
        let mut json = json.clone();
        json[key] = value;
        let error = serde_json::from_value::<Verity>(json).unwrap_err();
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[test]
fn wrong_parameters_are_refused_by_name() {
    let good = example().params();
    let cases = [
        (
            good.replace("salt=012f,", ""),
            "Verity parameters lack salt",
        ),
        (
            format!("{good},salt=00"),
            "Verity parameters have salt twice",
        ),
        (
            format!("{good},hash=1"),
            "Verity parameters have no \"hash\"",
        ),
        (
            format!("{good},"),
            "Verity parameters are key=value,…, which \"\" is not",
        ),
        (
            good.replace("012f", "01é"),
            "Verity parameters cannot have \"01é\" for salt",
        ),
        (
            good.replace("=300", "=+300"),
            "Verity parameters cannot have \"+300\" for data_blocks",
        ),
        (
            good.replace("=300", "=18446744073709551615"),
            "Verity parameters cannot have \"18446744073709551615\" for data_blocks",
        ),
        (
            good.replace("data_block_size=4096", "data_block_size=4095"),
            "Verity parameters cannot have \"4095\" for data_block_size",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(
            Verity::parse_params(&text).unwrap_err().to_string(),
            message
        );
    }
    assert!(Verity::parse_params(&good.replace("ab", "AB")).is_ok());
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        root_hash in any::<[u8; 32]>(),
        salt in prop::collection::vec(any::<u8>(), 0..=MAX_SALT),
        data_blocks in 1..1_u64 << 40,
        sizes in (9..=16_u32, 9..=16_u32),
    ) {
        let verity = Verity { root_hash, salt, data_blocks, data_block_size: 1 << sizes.0, hash_block_size: 1 << sizes.1 };
        prop_assert_eq!(Verity::parse_params(&verity.params()).unwrap(), verity.clone());
        // Each level is as small as it can be, and they lie one after another from the start.
        let levels = verity.levels();
        let mut end = 0;
        for level in levels.iter().rev() {
            prop_assert_eq!(level.first, end);
            end += level.blocks;
        }
        prop_assert_eq!(end * u64::from(verity.hash_block_size), verity.hash_size());
    }

    #[test]
    fn any_text_is_parameters_or_refused(text in "((root_hash|salt|data_blocks|x)=[0-9a-f]{0,70},?){0,5}|.{0,100}") {
        let _ = Verity::parse_params(&text);
    }

    #[test]
    fn any_parameters_verify_or_fail(root_hash in any::<[u8; 32]>(), data_blocks: u64, sizes: (u32, u32)) {
        let verity = Verity { root_hash, salt: Vec::new(), data_blocks, data_block_size: sizes.0, hash_block_size: sizes.1 };
        let file = tempfile::NamedTempFile::new().unwrap();
        prop_assert!(verify((file.path(), 0), (file.path(), 0), &verity).is_err());
    }
}
