// SPDX-License-Identifier: Apache-2.0
//! Copies into a directory of the test's own. The invariant of all of them:
//! what lies outside of the root never changes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;

use nix::libc::{S_IFDIR, S_IFLNK, S_IFREG};
use protocols::agent::CopyFileRequest;

use super::*;

struct Bench {
    _dir: tempfile::TempDir,
    root: PathBuf,
    outside: PathBuf,
    copies: Arc<CopyRoot>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let (root, outside) = (base.join("containers"), base.join("outside"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "untouched").unwrap();
        Self {
            _dir: dir,
            copies: Arc::new(CopyRoot::new(&root)),
            root,
            outside,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn request(&self, path: &str, mode: u32, data: &[u8]) -> CopyFileRequest {
        CopyFileRequest {
            path: format!("{}/{path}", self.root.display()),
            file_size: i64::try_from(data.len()).unwrap(),
            file_mode: mode,
            dir_mode: 1 << 31 | 0o750,
            uid: i32::try_from(nix::unistd::geteuid().as_raw()).unwrap(),
            gid: i32::try_from(nix::unistd::getegid().as_raw()).unwrap(),
            data: data.to_vec(),
            ..CopyFileRequest::default()
        }
    }

    fn send(&self, request: CopyFileRequest) -> Result<(), FileError> {
        self.copies.copy(CopyPlan::from_wire(request, &self.root)?)
    }

    fn file(&self, path: &str, data: &[u8]) -> Result<(), FileError> {
        self.send(self.request(path, S_IFREG | 0o640, data))
    }

    fn dir(&self, path: &str, mode: u32) -> Result<(), FileError> {
        self.send(self.request(path, S_IFDIR | mode, b""))
    }

    fn link(&self, path: &str, target: &str) -> Result<(), FileError> {
        self.send(self.request(path, S_IFLNK | 0o777, target.as_bytes()))
    }

    fn piece(&self, path: &str, all: &[u8], from: usize, to: usize) -> Result<(), FileError> {
        let mut request = self.request(path, S_IFREG | 0o600, &all[from..to]);
        request.file_size = i64::try_from(all.len()).unwrap();
        request.offset = i64::try_from(from).unwrap();
        self.send(request)
    }

    /// No hidden file is left, and the outside is as it was.
    fn check(&self) {
        assert_eq!(fs::read_dir(&self.outside).unwrap().count(), 1);
        let secret = fs::read_to_string(self.outside.join("secret")).unwrap();
        assert_eq!(secret, "untouched");
        assert!(self.copies.pending().files.is_empty());
        let listing = fs::read_dir(&self.root).unwrap();
        let mut names = listing.map(|e| e.unwrap().file_name());
        assert!(!names.any(|n| n.to_string_lossy().starts_with(".keelson")));
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_file_with_its_directories() {
    let b = Bench::new();
    b.file("a/b/file", b"content").unwrap();
    assert_eq!(fs::read(b.at("a/b/file")).unwrap(), b"content");
    assert_eq!(mode(&b.at("a/b/file")), 0o640);
    assert_eq!(mode(&b.at("a")), 0o750);
    // A directory that was there keeps its mode.
    fs::set_permissions(b.at("a"), fs::Permissions::from_mode(0o711)).unwrap();
    b.file("a/other", b"").unwrap();
    assert_eq!(mode(&b.at("a")), 0o711);
    assert_eq!(fs::read(b.at("a/other")).unwrap(), b"");
    b.check();
}

#[test]
fn pieces_make_a_file_that_appears_complete() {
    let b = Bench::new();
    let all: Vec<u8> = (0..=255).cycle().take(3000).collect();
    b.file("f", b"old").unwrap();
    b.piece("f", &all, 0, 1000).unwrap();
    assert_eq!(fs::read(b.at("f")).unwrap(), b"old");
    b.piece("f", &all, 1000, 2000).unwrap();
    // Sent again after a broken connection.
    b.piece("f", &all, 1000, 2000).unwrap();
    b.piece("f", &all, 2000, 3000).unwrap();
    assert_eq!(fs::read(b.at("f")).unwrap(), all);
    assert_eq!(mode(&b.at("f")), 0o600);
    b.check();
}

#[test]
fn pieces_that_do_not_follow_are_refused() {
    let b = Bench::new();
    let all = [7u8; 30];
    assert!(b.piece("f", &all, 10, 20).unwrap_err().is_bad_input());
    b.piece("f", &all, 0, 10).unwrap();
    assert!(b.piece("f", &all, 20, 30).unwrap_err().is_bad_input());
    b.piece("f", &all, 10, 30).unwrap();
    assert_eq!(fs::read(b.at("f")).unwrap(), all);
    b.check();
}

#[test]
fn a_copy_may_start_anew() {
    let b = Bench::new();
    b.piece("f", b"abcdef", 0, 3).unwrap();
    b.file("f", b"new").unwrap();
    assert_eq!(fs::read(b.at("f")).unwrap(), b"new");
    b.piece("f", b"abcdef", 0, 3).unwrap();
    b.dir("f", 0o755).unwrap();
    assert!(b.at("f").is_dir());
    b.check();
}

#[test]
fn bug_siblings_with_one_stem_do_not_collide() {
    let b = Bench::new();
    for (from, to) in [(0, 4), (4, 8)] {
        b.piece("a.crt", b"crt-data", from, to).unwrap();
        b.piece("a.key", b"KEY-DATA", from, to).unwrap();
        b.piece("a", b"plain---", from, to).unwrap();
    }
    assert_eq!(fs::read(b.at("a.crt")).unwrap(), b"crt-data");
    assert_eq!(fs::read(b.at("a.key")).unwrap(), b"KEY-DATA");
    assert_eq!(fs::read(b.at("a")).unwrap(), b"plain---");
    b.check();
}

#[test]
fn forgotten_copies_are_bounded() {
    let b = Bench::new();
    for n in 0..MOST_PENDING + 5 {
        b.piece(&format!("f{n}"), b"ab", 0, 1).unwrap();
    }
    assert_eq!(b.copies.pending().files.len(), MOST_PENDING);
    assert_eq!(fs::read_dir(&b.root).unwrap().count(), MOST_PENDING);
    assert!(b.piece("f0", b"ab", 1, 2).is_err());
    b.piece("f5", b"ab", 1, 2).unwrap();
    assert_eq!(fs::read(b.at("f5")).unwrap(), b"ab");
}

#[test]
fn a_directory_sent_again_keeps_its_content() {
    let b = Bench::new();
    b.dir("d", 0o1755).unwrap();
    b.file("d/f", b"x").unwrap();
    b.dir("d", 0o700).unwrap();
    assert_eq!(fs::read(b.at("d/f")).unwrap(), b"x");
    assert_eq!(mode(&b.at("d")), 0o700);
    // Anything else gives way to a directory.
    b.file("e", b"x").unwrap();
    b.dir("e", 0o755).unwrap();
    symlink(&b.outside, b.at("l")).unwrap();
    b.dir("l", 0o755).unwrap();
    assert!(b.at("e").is_dir());
    assert!(fs::symlink_metadata(b.at("l")).unwrap().is_dir());
    b.check();
}

#[test]
fn links_replace_what_is_there() {
    let b = Bench::new();
    b.link("vol/..data", "..2026_a").unwrap();
    b.link("vol/..data", "..2026_b").unwrap();
    let target = fs::read_link(b.at("vol/..data")).unwrap();
    assert_eq!(target, Path::new("..2026_b"));
    b.file("vol/tree/deep/f", b"x").unwrap();
    symlink(&b.outside, b.at("vol/tree/out")).unwrap();
    b.link("vol/tree", "/absent").unwrap();
    assert_eq!(
        fs::read_link(b.at("vol/tree")).unwrap(),
        Path::new("/absent")
    );
    b.check();
}

#[test]
fn a_file_replaces_a_directory_or_a_link() {
    let b = Bench::new();
    b.file("d/e/f", b"x").unwrap();
    symlink(&b.outside, b.at("d/e/out")).unwrap();
    b.file("d", b"file").unwrap();
    assert_eq!(fs::read(b.at("d")).unwrap(), b"file");
    symlink(b.outside.join("secret"), b.at("l")).unwrap();
    b.file("l", b"mine").unwrap();
    assert_eq!(fs::read(b.at("l")).unwrap(), b"mine");
    assert!(fs::symlink_metadata(b.at("l")).unwrap().is_file());
    b.check();
}

#[test]
fn cve_2026_41326_links_above_do_not_lead_out() {
    let b = Bench::new();
    b.dir("c", 0o755).unwrap();
    symlink(&b.outside, b.at("c/absolute")).unwrap();
    symlink("../../outside", b.at("c/relative")).unwrap();
    symlink("/proc/self/root", b.at("c/magic")).unwrap();
    // An absolute link means a place below the root, which does not exist;
    // a dangling link is not made into a directory.
    assert!(b.file("c/absolute/secret", b"x").is_err());
    assert!(b.file("c/relative/secret", b"x").is_err());
    assert!(b.file("c/magic/tmp/x", b"x").is_err());
    assert!(b.dir("c/absolute/new", 0o777).is_err());
    assert!(b.link("c/relative/secret", "x").is_err());
    b.check();
    // Links that stay inside work.
    b.dir("real", 0o755).unwrap();
    symlink("/real", b.at("c/inside")).unwrap();
    b.file("c/inside/f", b"x").unwrap();
    assert_eq!(fs::read(b.at("real/f")).unwrap(), b"x");
    b.check();
}

#[test]
fn hard_links_and_fifos_are_replaced_not_written() {
    let b = Bench::new();
    b.file("first", b"x").unwrap();
    fs::hard_link(b.outside.join("secret"), b.at("hard")).unwrap();
    b.file("hard", b"mine").unwrap();
    assert_eq!(fs::read(b.at("hard")).unwrap(), b"mine");
    let rwx = Mode::from_bits_truncate(0o666);
    nix::unistd::mkfifo(&b.at("fifo"), rwx).unwrap();
    b.file("fifo", b"data").unwrap();
    assert_eq!(fs::read(b.at("fifo")).unwrap(), b"data");
    b.check();
}

#[test]
fn names_taken_by_others_are_passed_over() {
    let b = Bench::new();
    b.dir("d", 0o755).unwrap();
    for n in 1..20 {
        let secret = b.outside.join("secret");
        symlink(secret, b.at("d").join(format!(".keelson-copy-{n:x}"))).unwrap();
    }
    b.file("d/f", b"x").unwrap();
    assert_eq!(fs::read(b.at("d/f")).unwrap(), b"x");
    b.check();
}

#[test]
fn a_file_as_a_directory_is_an_error() {
    let b = Bench::new();
    b.file("f", b"x").unwrap();
    assert!(b.file("f/g", b"x").is_err());
    assert_eq!(fs::read(b.at("f")).unwrap(), b"x");
    b.check();
}

#[test]
fn set_id_bits_survive_the_change_of_owner() {
    let b = Bench::new();
    b.send(b.request("f", S_IFREG | 0o4755, b"x")).unwrap();
    assert_eq!(mode(&b.at("f")), 0o4755);
    b.dir("d", 0o2770).unwrap();
    assert_eq!(mode(&b.at("d")), 0o2770);
    b.check();
}

/// A container that swaps a directory for a link all the time.
#[test]
fn cve_2026_41326_a_race_is_never_won() {
    let b = Bench::new();
    b.dir("c/d", 0o755).unwrap();
    let (dir, aside) = (b.at("c/d"), b.at("c/aside"));
    let outside = b.outside.clone();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let swapper = std::thread::spawn(move || {
        while !seen.load(std::sync::atomic::Ordering::Relaxed) {
            let _ = fs::rename(&dir, &aside);
            let _ = symlink(&outside, &dir);
            let _ = fs::remove_file(&dir);
            let _ = fs::rename(&aside, &dir);
        }
    });
    for _ in 0..2000 {
        // Whether it works depends on the moment; where it goes never does.
        let _ = b.file("c/d/secret", b"overwritten");
        let _ = b.link("c/d/secret", "x");
        let _ = b.dir("c/d/secret", 0o777);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    swapper.join().unwrap();
    assert_eq!(fs::read_dir(&b.outside).unwrap().count(), 1);
    let secret = fs::read_to_string(b.outside.join("secret")).unwrap();
    assert_eq!(secret, "untouched");
}
