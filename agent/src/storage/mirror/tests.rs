// SPDX-License-Identifier: Apache-2.0

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

struct Bench {
    dir: tempfile::TempDir,
    copy: Copy,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["source", "work", "work/copy"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let open = |name: &str| open(&dir.path().join(name), O_DIR, Mode::empty()).unwrap();
        let copy = Copy::new(open("work"), "..new".into(), open("work/copy"));
        Self { dir, copy }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("source")
    }

    fn copy(&self) -> PathBuf {
        self.dir.path().join("work/copy")
    }

    fn look(&mut self) -> bool {
        match self.copy.look(&self.source()).unwrap() {
            Seen::Changed(change) => {
                self.copy.apply(change).unwrap();
                true
            }
            Seen::Same => false,
            Seen::TooLarge => panic!("too large"),
        }
    }

    /// What kubelet does for a new version of two keys.
    fn publish(source: &Path, version: u32) {
        let name = format!("..2024_{version}");
        fs::create_dir(source.join(&name)).unwrap();
        for key in ["a", "b"] {
            fs::write(source.join(&name).join(key), format!("{version}")).unwrap();
        }
        let old = fs::read_link(source.join(DATA));
        symlink(&name, source.join("..data_tmp")).unwrap();
        fs::rename(source.join("..data_tmp"), source.join(DATA)).unwrap();
        match old {
            Ok(old) => fs::remove_dir_all(source.join(old)).unwrap(),
            Err(_) => {
                for key in ["a", "b"] {
                    symlink(format!("{DATA}/{key}"), source.join(key)).unwrap();
                }
            }
        }
    }
}

#[test]
fn everything_is_kept() {
    let mut bench = Bench::new();
    let (source, copy) = (bench.source(), bench.copy());
    fs::create_dir(source.join("d")).unwrap();
    fs::write(source.join("d/file"), "content").unwrap();
    fs::set_permissions(source.join("d/file"), fs::Permissions::from_mode(0o4640)).unwrap();
    fs::set_permissions(source.join("d"), fs::Permissions::from_mode(0o550)).unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o711)).unwrap();
    symlink("nowhere", source.join("dangling")).unwrap();
    symlink("/etc/passwd", source.join("out")).unwrap();
    assert!(bench.look());
    assert!(!bench.look());
    assert_eq!(fs::read(copy.join("d/file")).unwrap(), b"content");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&copy.join("d/file")), 0o4640);
    assert_eq!(mode(&copy.join("d")), 0o550);
    assert_eq!(mode(&copy), 0o711);
    for name in ["dangling", "out"] {
        assert_eq!(
            fs::read_link(copy.join(name)).unwrap(),
            fs::read_link(source.join(name)).unwrap()
        );
    }
}

/// kata-containers#10411, #2950, #13515.
#[test]
fn bug_links_are_exchanged_and_removals_followed() {
    let mut bench = Bench::new();
    let (source, copy) = (bench.source(), bench.copy());
    Bench::publish(&source, 1);
    assert!(bench.look());
    assert_eq!(fs::read(copy.join("a")).unwrap(), b"1");
    Bench::publish(&source, 2);
    fs::remove_file(source.join("b")).unwrap();
    assert!(bench.look());
    assert_eq!(fs::read(copy.join("a")).unwrap(), b"2");
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&copy), ["..2024_2", "..data", "a"]);
    assert_eq!(names(copy.parent().unwrap()), ["copy"]);
}

#[test]
fn a_reader_never_sees_half_of_an_update() {
    let mut bench = Bench::new();
    let (source, copy) = (bench.source(), bench.copy());
    Bench::publish(&source, 1);
    bench.look();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !stop.load(Ordering::Relaxed) {
                // As programs do that want all keys of one version.
                let link = || fs::read_link(copy.join(DATA)).unwrap();
                let version = link();
                let read = |key: &str| fs::read_to_string(copy.join(&version).join(key));
                match (read("a"), read("b")) {
                    (Ok(a), Ok(b)) => assert_eq!(a, b),
                    // Taken away in between: then it was old.
                    _ => assert_ne!(link(), version),
                }
                seen += 1;
            }
            seen
        });
        for version in 2..200 {
            Bench::publish(&source, version);
            bench.look();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
    assert_eq!(fs::read(copy.join("b")).unwrap(), b"199");
}

#[test]
fn bug_an_older_file_is_a_change() {
    let mut bench = Bench::new();
    let file = bench.source().join("file");
    fs::write(&file, "new").unwrap();
    bench.look();
    fs::remove_file(&file).unwrap();
    fs::write(&file, "old").unwrap();
    let past = std::time::SystemTime::UNIX_EPOCH;
    File::open(&file).unwrap().set_modified(past).unwrap();
    assert!(bench.look());
    assert_eq!(fs::read(bench.copy().join("file")).unwrap(), b"old");
}

#[test]
fn kinds_may_change() {
    let mut bench = Bench::new();
    let (thing, copy) = (bench.source().join("x"), bench.copy().join("x"));
    fs::create_dir(&thing).unwrap();
    fs::write(thing.join("y"), "1").unwrap();
    bench.look();
    fs::remove_dir_all(&thing).unwrap();
    fs::write(&thing, "2").unwrap();
    bench.look();
    assert_eq!(fs::read(&copy).unwrap(), b"2");
    fs::remove_file(&thing).unwrap();
    symlink("z", &thing).unwrap();
    bench.look();
    assert_eq!(fs::read_link(&copy).unwrap(), Path::new("z"));
    fs::remove_file(&thing).unwrap();
    fs::create_dir(&thing).unwrap();
    bench.look();
    assert!(copy.is_dir());
}

#[test]
fn pipes_are_left_out_and_large_trees_refused() {
    let mut bench = Bench::new();
    let source = bench.source();
    nix::unistd::mkfifo(&source.join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
    fs::write(source.join("file"), vec![0; 1 << 20]).unwrap();
    assert!(bench.look());
    assert!(!bench.copy().join("pipe").exists());
    fs::write(source.join("one"), "x").unwrap();
    assert!(matches!(first_look(&source), Ok(Seen::TooLarge)));
    fs::remove_file(source.join("file")).unwrap();
    for number in 1..16 {
        fs::write(source.join(number.to_string()), "x").unwrap();
    }
    assert!(matches!(first_look(&source), Ok(Seen::Changed(_))));
    fs::write(source.join("16"), "x").unwrap();
    assert!(matches!(first_look(&source), Ok(Seen::TooLarge)));
}

#[test]
fn a_source_behind_a_link_is_refused() {
    let bench = Bench::new();
    symlink(bench.source(), bench.dir.path().join("link")).unwrap();
    let path = bench.dir.path().canonicalize().unwrap().join("link");
    // Copied as the link that it is would be of no use; followed it is not.
    assert!(first_look(&path.join("x")).is_err());
    assert!(first_look(&path).is_err());
}

/// Whatever a thread puts in the place of a directory, nothing outside is read.
#[test]
fn a_swapping_thread_gains_nothing() {
    let bench = Bench::new();
    let source = bench.source();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("f"), "secret").unwrap();
    let (place, stop) = (source.join("d"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = symlink(outside.path(), &place);
                let _ = fs::remove_file(&place);
                let _ = fs::create_dir(&place);
                let _ = fs::write(place.join("f"), "plain");
                let _ = fs::remove_dir_all(&place);
            }
        });
        for _ in 0..2000 {
            if let Ok(Seen::Changed(change)) = first_look(&source) {
                assert!(change.contents.values().all(|content| content != b"secret"));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}
