// SPDX-License-Identifier: Apache-2.0
//! Disk images for the stories, made by the field's own programs: what the guest reads was not written by us.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::vm::search_path;

/// Where a file system and its hash tree are in one image.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The tree's root, hexadecimal.
    pub root_hash: String,
    /// Where the tree's superblock begins, in bytes.
    pub hash_offset: u64,
}

/// Runs a program of the field's, with something to read if need be, and gives what it printed.
fn tool(program: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>], input: &str) -> String {
    let mut command = Command::new(program);
    for argument in arguments {
        command.arg(argument);
    }
    command.env("PATH", search_path()).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|e| panic!("Cannot run {program}: {e}"));
    let mut stdin = child.stdin.take().expect("it is a pipe");
    std::io::Write::write_all(&mut stdin, input.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}{errors}");
    text
}

/// An empty file of so many bytes.
pub fn blank(path: &Path, bytes: u64) -> PathBuf {
    let file = File::create(path).expect("a new file");
    file.set_len(bytes).expect("a size");
    path.to_owned()
}

/// An ext4 file system of so many MiB with blocks of 4 KiB, which small ones do not have by themselves.
pub fn ext4_of_pages(path: &Path, mib: u64) -> PathBuf {
    blank(path, mib << 20);
    tool("mkfs.ext4", &[&"-q", &"-F", &"-b", &"4096", &path], "");
    path.to_owned()
}

/// An xfs file system of so many MiB, which are 300 at least.
pub fn xfs_image(path: &Path, mib: u64) -> PathBuf {
    blank(path, mib << 20);
    tool("mkfs.xfs", &[&"-q", &path], "");
    path.to_owned()
}

/// A file system of the kind that layers are, with these files.
pub fn erofs_image(path: &Path, files: &[(&str, &str)]) -> PathBuf {
    let tree = path.with_extension("tree");
    for (name, content) in files {
        let file = tree.join(name);
        fs::create_dir_all(file.parent().expect("it is below the tree")).expect("a directory");
        fs::write(&file, content).expect("a file");
    }
    tool("mkfs.erofs", &[&path, &tree], "");
    path.to_owned()
}

/// Puts a hash tree behind the data of an image.
pub fn verify(image: &Path) -> Verified {
    let hash_offset = image.metadata().expect("it is there").len();
    let offset = format!("--hash-offset={hash_offset}");
    // Its salt would be random, and in its superblock only.
    let printed = tool(
        "veritysetup",
        &[&"format", &"--salt=-", &offset, &image, &image],
        "",
    );
    let line = printed.lines().find_map(|l| l.strip_prefix("Root hash:"));
    Verified {
        root_hash: line.expect("a root hash").trim().to_owned(),
        hash_offset,
    }
}

/// A disk with a GPT and these images as its partitions, in this order.
pub fn partitioned(path: &Path, images: &[PathBuf]) -> PathBuf {
    const SECTOR: u64 = 512;
    const FIRST: u64 = 2048;
    let (mut next, mut script) = (FIRST, "label: gpt\n".to_owned());
    let mut places = Vec::new();
    for image in images {
        let sectors = image
            .metadata()
            .expect("it is there")
            .len()
            .div_ceil(SECTOR);
        script.push_str(&format!("start={next}, size={sectors}\n"));
        places.push(next * SECTOR);
        next = (next + sectors).next_multiple_of(FIRST);
    }
    // The table's copy is at the end.
    let disk = blank(path, (next + FIRST) * SECTOR);
    tool("sfdisk", &[&"-q", &disk], &script);
    let file = File::options().write(true).open(&disk).expect("the disk");
    for (image, place) in images.iter().zip(places) {
        let data = fs::read(image).expect("an image");
        std::os::unix::fs::FileExt::write_all_at(&file, &data, place).expect("room");
    }
    disk
}

/// A disk with the signature of swap.
pub fn swap_image(path: &Path, mib: u64) -> PathBuf {
    blank(path, mib << 20);
    tool("mkswap", &[&path], "");
    path.to_owned()
}

/// Insists that a file system is whole, by the program of its kind; `kind` is `ext4` or `xfs`.
pub fn expect_whole(kind: &str, image: &Path) {
    match kind {
        "ext4" => tool("e2fsck", &[&"-fn", &image], ""),
        _ => tool("xfs_repair", &[&"-n", &image], ""),
    };
}

/// Turns one bit of a file over.
pub fn flip_bit(image: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file = File::options().read(true).write(true).open(image);
    let file = file.expect("the image");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("a byte");
    byte[0] ^= 1;
    file.write_all_at(&byte, offset).expect("a byte");
}

/// Overwrites both copies of a disk's partition table, and what says that there is one.
pub fn ruin_table(disk: &Path) {
    use std::os::unix::fs::FileExt;
    const TABLE: usize = 34 * 512;
    let file = File::options().write(true).open(disk).expect("the disk");
    let end = file.metadata().expect("a size").len();
    for place in [0, end - TABLE as u64] {
        file.write_all_at(&[0xa5; TABLE], place).expect("room");
    }
}

/// Puts a program of this host's into a directory, where it has it itself, with all the libraries that it needs.
pub fn bring_along(program: &str, dir: &Path) {
    let found = tool("sh", &[&"-c", &format!("command -v {program}")], "");
    let program = fs::canonicalize(found.trim()).expect("a program");
    let libraries = tool("ldd", &[&program], "");
    let libraries = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for file in libraries.map(Path::new) {
        let place = dir.join(file.strip_prefix("/").expect("it is absolute"));
        fs::create_dir_all(place.parent().expect("a file has a directory")).expect("a directory");
        fs::copy(file, &place).expect("a copy");
    }
    fs::create_dir_all(dir.join("sbin")).expect("a directory");
    fs::copy(
        &program,
        dir.join("sbin")
            .join(found.trim().rsplit('/').next().expect("a name")),
    )
    .expect("a copy");
}
