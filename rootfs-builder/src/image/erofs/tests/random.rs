// SPDX-License-Identifier: Apache-2.0
//! Random trees, written and read back.

use std::fs;

use proptest::prelude::*;

use super::reader::Image;
use super::{assert_holds, image, noise, tool};
use crate::tree::{Content, Entry, Kind, Tree};

fn kind() -> impl Strategy<Value = Kind> {
    let seed = (
        0..3u32,
        prop_oneof![0..40usize, 4090..4100usize, 8190..12_300usize],
    );
    prop_oneof![
        5 => seed.prop_map(|(seed, size)| Kind::File(Content::Bytes(noise(size, seed)))),
        2 => Just(Kind::Directory),
        2 => (1..4096usize).prop_map(|size| Kind::Symlink("t".repeat(size).into())),
        1 => (0..4096u32, 0..1u32 << 20).prop_map(|(major, minor)| Kind::CharDevice(major, minor)),
        1 => Just(Kind::Fifo),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let name = "(user|trusted|security)\\.[a-z]{1,20}";
    let xattrs = prop::collection::btree_map(
        name.prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..600),
        0..4,
    );
    (kind(), 0..0o10000u32, any::<u32>(), any::<u32>(), xattrs).prop_map(
        |(kind, mode, uid, gid, xattrs)| Entry {
            uid,
            gid,
            xattrs,
            ..Entry::new(kind, mode)
        },
    )
}

fn tree() -> impl Strategy<Value = Tree> {
    // Few letters, so that there are directories with many names; some that come before "." and "/".
    let path = "[-!.ab\u{e4}]{1,3}(/[-!.ab]{1,200}){0,2}";
    prop::collection::vec((path, entry()), 0..60).prop_map(|entries| {
        let mut tree = Tree::default();
        for (path, entry) in entries {
            // Some of these are no paths, or lie below files.
            let _ = tree.insert(path, entry);
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tree_is_found_again(tree in tree()) {
        let file = tempfile::NamedTempFile::new().unwrap();
        image(&tree, file.path());
        assert_holds(&Image::new(fs::read(file.path()).unwrap()), &tree);
        tool("fsck.erofs", &["--extract"], file.path());
    }
}
