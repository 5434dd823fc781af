// SPDX-License-Identifier: Apache-2.0

use clap::Parser;

use super::*;
use crate::assemble::RootError;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: DefinitionArgs,
}

fn layer(words: &[&str]) -> Layer {
    let line = Line::try_parse_from([&["build"], words].concat());
    line.unwrap_or_else(|error| panic!("{words:?}: {error}"))
        .args
        .layer()
}

fn refused(words: &[&str]) -> String {
    let line = Line::try_parse_from([&["build"], words].concat());
    line.unwrap_err().to_string()
}

#[test]
fn without_options_nothing_is_said() {
    assert_eq!(layer(&[]), Layer::default());
}

#[test]
fn every_option_is_a_setting() {
    let words = "--profile coco --name n -o out.img --arch arm64 --format disk --filesystem ext4 --compress zstd \
        --verity --dax=false --align 128M --free 16M --base debian --suite trixie --packages a,b --packages c \
        --shell=true --hostname h --kernel built --fragment debug --fragment ./x --word a=1 --word b --binary bin";
    let words: Vec<&str> = words.split_whitespace().collect();
    let expected = Layer {
        profile: Some(Profile::Coco),
        name: Some("n".into()),
        output: Some("out.img".into()),
        arch: Some(Arch::Aarch64),
        format: Some(Format::Disk),
        filesystem: Some(Filesystem::Ext4),
        compression: Some(Compression::Zstd),
        verity: Some(true),
        dax: Some(false),
        align: Some(Size(128 << 20)),
        free: Some(Size(16 << 20)),
        base: Some(BaseChoice::Debian),
        suite: Some("trixie".into()),
        packages: vec!["a".into(), "b".into(), "c".into()],
        shell: Some(true),
        hostname: Some("h".into()),
        kernel: Some(KernelChoice::Built),
        fragments: vec!["debug".into(), "./x".into()],
        words: vec!["a=1".into(), "b".into()],
        binary: Some("bin".into()),
        ..Layer::default()
    };
    assert_eq!(layer(&words), expected);
}

#[test]
fn additions_have_a_target_and_may_have_a_mode_and_an_owner() {
    let made = layer(&[
        "--add",
        "a:/b",
        "--add",
        "c:/d:0600",
        "--add",
        "e:/f:0755:1:2",
        "--mkdir",
        "/g",
        "--mkdir",
        "/h:1777:3:4",
    ]);
    let file = |source: &str, target: &str, mode, owner| FileEntry {
        target: target.into(),
        what: FileContent::Source(source.into()),
        mode,
        owner,
    };
    let owner = |uid, gid| Some(Owner { uid, gid });
    let files = [
        file("a", "/b", None, None),
        file("c", "/d", Some(Mode(0o600)), None),
        file("e", "/f", Some(Mode(0o755)), owner(1, 2)),
    ];
    assert_eq!(made.files, files);
    assert_eq!(made.directories[0].target, PathBuf::from("/g"));
    assert_eq!(made.directories[1].mode, Some(Mode(0o1777)));
    assert_eq!(made.directories[1].owner, owner(3, 4));
    for bad in ["a", "a:", ":/b", "a:/b:x", "a:/b:0644:root"] {
        assert!(refused(&["--add", bad]).contains("--add"), "{bad}");
    }
}

#[test]
fn an_extensions_name_says_the_format() {
    let made = layer(&["--extension", "devkit"]);
    assert_eq!(made.format, Some(Format::Extension));
    let other = layer(&["--extension", "devkit", "--format", "disk"]);
    assert_eq!(other.format, Some(Format::Disk));
}

#[test]
fn switches_take_their_value_after_an_equals_sign_only() {
    assert!(refused(&["--verity", "false"]).contains("false"));
    assert!(refused(&["--dax=maybe"]).contains("maybe"));
    assert!(refused(&["--align", "2MB"]).contains("no size"));
}

#[test]
fn flags_come_before_the_file_and_the_file_before_the_profile() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image.toml");
    let text =
        "schema = 1\nprofile = \"debug\"\nhostname = \"file\"\nname = \"file\"\nshell = false\n";
    std::fs::write(&file, text).unwrap();
    let words = ["build", "-f", file.to_str().unwrap(), "--hostname", "flag"];
    let resolved = Line::try_parse_from(words).unwrap().args.resolve().unwrap();
    let definition = resolved.definition;
    assert_eq!(definition.hostname.as_deref(), Some("flag"));
    assert_eq!(definition.name, "file");
    assert!(!definition.shell);
    assert!(definition.words.contains(&"agent.log=debug".to_owned()));
}

#[test]
fn an_error_that_has_a_hint_is_not_hidden() {
    let arch = Arch::X86_64;
    let error = opened(BuildError::Assemble(RootError::NoShell { arch }.into()));
    assert!(error.downcast_ref::<RootError>().is_some());
    let epoch = AssembleError::Epoch {
        value: "x".to_owned(),
    };
    let error = opened(BuildError::Assemble(epoch));
    assert!(error.downcast_ref::<AssembleError>().is_some());
    let path = PathBuf::from("x");
    let error = opened(BuildError::NotEmpty { path });
    assert!(error.downcast_ref::<BuildError>().is_some());
}
