// SPDX-License-Identifier: Apache-2.0
//! Random trees, written and read back.

use proptest::prelude::*;

use super::super::Options;
use super::{assert_holds, image, noise, options};
use crate::tree::{Content, Entry, Kind, Tree};

fn tree() -> impl Strategy<Value = Tree> {
    let kind = prop_oneof![
        5 => (0..3u32, prop_oneof![0..40usize, 4090..12_300usize])
            .prop_map(|(seed, size)| Kind::File(Content::Bytes(noise(size, seed)))),
        2 => Just(Kind::Directory),
        2 => (1..200usize).prop_map(|size| Kind::Symlink("t".repeat(size).into())),
        1 => Just(Kind::Fifo),
    ];
    let xattrs = prop::collection::btree_map(
        "(user|trusted|security)\\.[a-z]{1,20}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..600),
        0..4,
    );
    let entry = (kind, 0..0o10000u32, any::<u32>(), any::<u32>(), xattrs).prop_map(
        |(kind, mode, uid, gid, xattrs)| Entry {
            uid,
            gid,
            xattrs,
            ..Entry::new(kind, mode)
        },
    );
    let path = "[-<>\"'# .ab\u{e4}]{1,3}(/[-<>\"'# .ab]{1,200}){0,2}";
    prop::collection::vec((path, entry), 0..60).prop_map(|entries| {
        let mut tree = Tree::default();
        for (path, entry) in entries {
            // Some of these are no paths, or lie below files.
            let _ = tree.insert(path, entry);
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_tree_is_found_again(tree in tree(), journal in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        image(&tree, &Options { journal, ..options() }, &path);
        assert_holds(&path, &tree);
    }
}
