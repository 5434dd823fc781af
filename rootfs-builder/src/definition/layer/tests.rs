// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;

use super::*;

/// Every key there is.
const WHOLE: &str = r#"
schema = 1
name = "guest"
arch = "arm64"
profile = "debian"
base = "root.tar"
suite = "bookworm"
packages = ["kmod", "pciutils"]
kernel = "built"
fragments = ["vfio", "my/own.config"]
format = "disk"
filesystem = "ext4"
compression = "zstd"
verity = true
dax = false
align = "128M"
free = 4096
hostname = "guest"
words = ["agent.log=debug", "quiet"]
extension = "devkit"
shell = true
binary = "bin/keelson"
output = "/srv/guest.img"
directories = [{ target = "/opt", mode = "0700", owner = "1:2" }, { target = "/srv" }]

[[files]]
source = "motd"
target = "/etc/motd"

[[files]]
text = "hello\n"
target = "/etc/issue"
mode = "0600"
owner = "1000:1000"

[[files]]
link = "busybox"
target = "/bin/sh"
"#;

fn read(text: &str) -> Result<Layer, FileError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.toml");
    fs::write(&path, text).unwrap();
    let mut layer = Layer::read(&path)?;
    // As if it lay in /d.
    let place = |path: &mut PathBuf| {
        if let Ok(rest) = path.strip_prefix(dir.path()) {
            *path = Path::new("/d").join(rest);
        }
    };
    if let Some(BaseChoice::Path(path)) = &mut layer.base {
        place(path);
    }
    for file in &mut layer.files {
        if let FileContent::Source(path) = &mut file.what {
            place(path);
        }
    }
    layer.binary.iter_mut().for_each(place);
    for fragment in &mut layer.fragments {
        *fragment = fragment.replace(dir.path().to_str().unwrap(), "/d");
    }
    Ok(layer)
}

/// The error of a definition and all that it says, lines of the file included.
fn complaint(text: &str) -> String {
    let error = anyhow::Error::from(read(text).unwrap_err());
    format!("{error:#}")
}

#[test]
fn every_key_is_read_and_paths_are_the_files_own() {
    let owner = |uid, gid| Some(Owner { uid, gid });
    let file = |target: &str, what, mode, owner| FileEntry {
        target: target.into(),
        what,
        mode,
        owner,
    };
    let expected = Layer {
        name: Some("guest".into()),
        arch: Some(Arch::Aarch64),
        profile: Some(Profile::Debian),
        base: Some(BaseChoice::Path("/d/root.tar".into())),
        suite: Some("bookworm".into()),
        packages: vec!["kmod".into(), "pciutils".into()],
        files: vec![
            file(
                "/etc/motd",
                FileContent::Source("/d/motd".into()),
                None,
                None,
            ),
            file(
                "/etc/issue",
                FileContent::Text("hello\n".into()),
                Some(Mode(0o600)),
                owner(1000, 1000),
            ),
            file("/bin/sh", FileContent::Link("busybox".into()), None, None),
        ],
        directories: vec![
            DirectoryEntry {
                target: "/opt".into(),
                mode: Some(Mode(0o700)),
                owner: owner(1, 2),
            },
            DirectoryEntry {
                target: "/srv".into(),
                mode: None,
                owner: None,
            },
        ],
        kernel: Some(KernelChoice::Built),
        fragments: vec!["vfio".into(), "/d/my/own.config".into()],
        format: Some(Format::Disk),
        filesystem: Some(Filesystem::Ext4),
        compression: Some(Compression::Zstd),
        verity: Some(true),
        dax: Some(false),
        align: Some(Size(128 << 20)),
        free: Some(Size(4096)),
        hostname: Some("guest".into()),
        words: vec!["agent.log=debug".into(), "quiet".into()],
        extension: Some("devkit".into()),
        shell: Some(true),
        binary: Some("/d/bin/keelson".into()),
        output: Some("/srv/guest.img".into()),
    };
    assert_eq!(read(WHOLE).unwrap(), expected);
    assert_eq!(read("schema = 1").unwrap(), Layer::default());
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    for (text, line, what) in [
        ("schema = 1\nformt = \"disk\"", 2, "unknown field `formt`"),
        (
            "schema = 1\nformat = \"qcow2\"",
            2,
            "unknown variant `qcow2`",
        ),
        ("schema = 1\narch = \"riscv64\"", 2, "Unknown architecture"),
        ("schema = 1\nalign = \"2MB\"", 2, "\"2MB\" is no size"),
        ("schema = 1\nalign = -1", 2, "not negative"),
        ("schema = 1\nverity = \"yes\"", 2, "expected a boolean"),
        (
            "schema = 1\nprofile = \"tiny\"",
            2,
            "unknown variant `tiny`",
        ),
        (
            "schema = 1\n\n[[files]]\ntarget = \"/a\"\ntext = \"\"\nsource = \"b\"",
            3,
            "one of source, text and link",
        ),
        (
            "schema = 1\n[[files]]\ntarget = \"/a\"\nlink = \"b\"\nmode = \"0644\"",
            2,
            "a link has no mode",
        ),
        (
            "schema = 1\ndirectories = [{ target = \"/a\", mode = \"999\" }]",
            2,
            "\"999\" is no mode",
        ),
        ("schema = 1\nname = ", 2, ""),
        ("name = \"x\"", 1, "missing field `schema`"),
    ] {
        let said = complaint(text);
        assert!(said.contains(what), "{text:?}: {said}");
        assert!(said.contains(&format!("line {line}")), "{text:?}: {said}");
        assert!(said.contains("image.toml"), "{said}");
    }
}

#[test]
fn another_schema_is_refused() {
    assert!(complaint("schema = 2").contains("this program reads schema = 1"));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Layer::read(Path::new("/nonexistent/image.toml")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/image.toml"));
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_fall_over(text: String) {
        let _ = parse(&text);
    }
}
