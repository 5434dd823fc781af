// SPDX-License-Identifier: Apache-2.0
//! The pause image: what a pod's sandbox container runs where images are pulled
//! in the guest. It is part of the guest's own image, since nothing that comes
//! from the host is to run there (protocol 5.8). Never looks at requests.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime as oci;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use serde_json::Value;

use crate::container::child::within;
use crate::container::plan::{PlanError, ProcessPlan, process};

/// Where it may lie: in the guest's image, or in the `coco` extension.
const PLACES: [&str; 2] = ["/pause_bundle", "/run/kata-extensions/coco/pause_bundle"];

const CONFIG: &str = "config.json";

/// Both are some KiB, or a program of less than one MiB.
const LARGEST_CONFIG: u64 = 1 << 20;
const LARGEST_PROGRAM: u64 = 64 << 20;

/// What container engines write to tell a pod's sandbox from its containers.
const MARKERS: [&str; 2] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
];

/// Whether annotations are those of a pod's sandbox.
pub fn is_sandbox<'a>(annotation: impl Fn(&str) -> Option<&'a str>) -> bool {
    MARKERS.iter().any(|key| annotation(key) == Some("sandbox"))
}

/// A pause image that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// The guest has none.
    #[error("The guest has no pause image in /pause_bundle")]
    Absent(#[source] io::Error),
    /// A part of it cannot be read or copied.
    #[error("Pause image: '{path}'")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A config.json that says nothing of a process.
    #[error("Pause image: config.json has no usable {0}")]
    Config(&'static str),
    /// A process that cannot be run.
    #[error("Pause image: config.json")]
    Process(#[from] PlanError),
}

/// The pause image of this guest.
#[derive(Debug)]
pub struct PauseImage {
    dir: OwnedFd,
    config: Vec<u8>,
    process: Value,
}

impl PauseImage {
    /// Opens it and reads its configuration. Blocks.
    ///
    /// # Errors
    /// [`PauseError`].
    pub fn open() -> Result<Self, PauseError> {
        Self::open_at(&PLACES.map(Path::new))
    }

    fn open_at(places: &[&Path]) -> Result<Self, PauseError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut found = Err(rustix::io::Errno::NOENT);
        for place in places {
            let dir = openat(CWD, *place, flags, Mode::empty());
            // Images may have the empty directory, for an extension to fill.
            let has_config = |dir: &OwnedFd| within::find(dir.as_fd(), CONFIG).is_ok();
            if found.is_err() && dir.as_ref().is_ok_and(has_config) {
                found = dir;
            }
        }
        let dir = found.map_err(|error| PauseError::Absent(error.into()))?;
        let config = read(&dir).map_err(at(CONFIG))?;
        let mut parsed: Value =
            serde_json::from_slice(&config).map_err(|_| PauseError::Config("JSON"))?;
        let process = parsed.get_mut("process").map(Value::take);
        let process = process.unwrap_or_default();
        if process["args"][0].as_str().is_none_or(str::is_empty) {
            return Err(PauseError::Config("process.args"));
        }
        Ok(Self {
            dir,
            config,
            process,
        })
    }

    /// Its program, a path in its root file system.
    #[must_use]
    pub fn program(&self) -> &str {
        self.process["args"][0].as_str().unwrap_or_default()
    }

    /// Writes its configuration into a bundle, and its program to the same place
    /// in the bundle's empty root. Blocks.
    ///
    /// # Errors
    /// [`PauseError::File`].
    pub fn copy(&self, bundle: &OwnedFd, rootfs: &OwnedFd) -> Result<(), PauseError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        openat(
            bundle,
            CONFIG,
            flags | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o644),
        )
        .map_err(io::Error::from)
        .and_then(|file| io::Write::write_all(&mut File::from(file), &self.config))
        .map_err(at(CONFIG))?;
        self.copy_program(rootfs).map_err(at(self.program()))
    }

    fn copy_program(&self, rootfs: &OwnedFd) -> io::Result<()> {
        let root = within::find(self.dir.as_fd(), "rootfs")?;
        let source = within::open(
            root.as_fd(),
            self.program(),
            OFlags::RDONLY | OFlags::NONBLOCK,
        )?;
        let stat = fstat(&source)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if stat.st_size as u64 > LARGEST_PROGRAM {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let (parent, name) = within::split(self.program());
        let parent = within::directory(rootfs.as_fd(), parent)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
        let copy = openat(&parent, name, flags | OFlags::CLOEXEC, mode)?;
        let mut source = File::from(source).take(LARGEST_PROGRAM);
        io::copy(&mut source, &mut File::from(copy)).map(drop)
    }

    /// Puts its process in the place of the one that was asked for. Of that stay
    /// resource limits, labels, and what the image says nothing of.
    ///
    /// # Errors
    /// [`PauseError::Process`].
    pub fn replace(&self, requested: &mut ProcessPlan) -> Result<(), PauseError> {
        let own = process::plan(&self.oci_process())?;
        requested.args = own.args;
        requested.env = own.env;
        requested.cwd = own.cwd;
        (requested.uid, requested.gid, requested.groups) = (own.uid, own.gid, own.groups);
        requested.no_new_privs = own.no_new_privs;
        requested.terminal = false;
        if own.capabilities.is_some() {
            requested.capabilities = own.capabilities;
        }
        Ok(())
    }

    fn oci_process(&self) -> oci::Process {
        let from = &self.process;
        let mut user = oci::User::default();
        let groups = from["user"]["additionalGids"].as_array();
        user.set_uid(number(&from["user"]["uid"]).unwrap_or(0))
            .set_gid(number(&from["user"]["gid"]).unwrap_or(0))
            .set_additional_gids(groups.map(|list| list.iter().filter_map(number).collect()));
        let mut process = oci::Process::default();
        process
            .set_args(Some(words(&from["args"])))
            .set_env(Some(words(&from["env"])))
            .set_cwd(from["cwd"].as_str().unwrap_or("/").into())
            .set_user(user)
            .set_no_new_privileges(from["noNewPrivileges"].as_bool())
            .set_capabilities(capabilities(&from["capabilities"]));
        process
    }
}

fn capabilities(from: &Value) -> Option<oci::LinuxCapabilities> {
    let set = |name: &str| {
        // One that this guest does not know cannot be given.
        let known = |word: String| word.strip_prefix("CAP_")?.parse().ok();
        Some(words(&from[name]).into_iter().filter_map(known).collect())
    };
    from.is_object().then(|| {
        let mut all = oci::LinuxCapabilities::default();
        all.set_bounding(set("bounding"))
            .set_effective(set("effective"))
            .set_inheritable(set("inheritable"))
            .set_permitted(set("permitted"))
            .set_ambient(set("ambient"));
        all
    })
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64()?.try_into().ok()
}

fn words(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(|word| word.as_str().map(str::to_owned))
        .collect()
}

fn read(dir: &OwnedFd) -> io::Result<Vec<u8>> {
    let file = within::open(dir.as_fd(), CONFIG, OFlags::RDONLY | OFlags::NONBLOCK)?;
    let mut bytes = Vec::new();
    File::from(file)
        .take(LARGEST_CONFIG + 1)
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > LARGEST_CONFIG {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}

fn at(path: &str) -> impl FnOnce(io::Error) -> PauseError {
    let path = path.into();
    move |source| PauseError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn image(config: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("rootfs/bin")).unwrap();
        fs::write(dir.path().join("rootfs/bin/pause"), "program").unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir.path().join("rootfs/bin/pause"), mode).unwrap();
        fs::write(dir.path().join(CONFIG), config).unwrap();
        dir
    }

    fn open(dir: &tempfile::TempDir) -> Result<PauseImage, PauseError> {
        PauseImage::open_at(&[Path::new("/absent"), dir.path()])
    }

    fn copied(image: &PauseImage) -> Result<tempfile::TempDir, PauseError> {
        let bundle = tempfile::tempdir().unwrap();
        fs::create_dir(bundle.path().join("rootfs")).unwrap();
        let open = |path: &Path| within::in_guest(path.to_str().unwrap()).unwrap();
        image.copy(&open(bundle.path()), &open(&bundle.path().join("rootfs")))?;
        Ok(bundle)
    }

    #[test]
    fn program_and_configuration_are_copied() {
        let dir = image(r#"{"process":{"args":["/bin/pause"]}}"#);
        let bundle = copied(&open(&dir).unwrap()).unwrap();
        let program = bundle.path().join("rootfs/bin/pause");
        assert_eq!(fs::read(&program).unwrap(), b"program");
        let mode = fs::metadata(&program).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert!(bundle.path().join(CONFIG).exists());
    }

    #[test]
    fn its_process_replaces_what_was_asked_for() {
        let dir = image(
            r#"{"process":{"args":["/bin/pause","-v"],"env":["A=b"],"user":{"uid":65535,"gid":7},
            "noNewPrivileges":true,"capabilities":{"bounding":["CAP_CHOWN","CAP_NEW"]}}}"#,
        );
        let mut plan = ProcessPlan {
            args: vec!["sh".into()],
            terminal: true,
            oom_score_adj: -5,
            ..ProcessPlan::default()
        };
        open(&dir).unwrap().replace(&mut plan).unwrap();
        assert_eq!(plan.args, ["/bin/pause", "-v"]);
        assert_eq!((plan.env, plan.cwd), (vec!["A=b".to_owned()], "/".into()));
        assert_eq!((plan.uid, plan.gid), (65535, 7));
        assert!(plan.no_new_privs && !plan.terminal && plan.oom_score_adj == -5);
        assert_eq!(plan.capabilities.unwrap().bounding, 1);
    }

    #[test]
    fn nothing_outside_is_copied() {
        for args in ["/link", "/../../../etc/passwd", "/bin", "/absent", "/.."] {
            let dir = image(&format!(r#"{{"process":{{"args":["{args}"]}}}}"#));
            symlink("/etc/passwd", dir.path().join("rootfs/link")).unwrap();
            assert!(copied(&open(&dir).unwrap()).is_err(), "{args}");
        }
    }

    #[test]
    fn odd_images_are_refused() {
        let absent = PauseImage::open_at(&[Path::new("/absent")]).unwrap_err();
        assert!(matches!(absent, PauseError::Absent(_)));
        for config in [
            "",
            "[]",
            "{}",
            r#"{"process":{"args":[]}}"#,
            r#"{"process":{"args":[7]}}"#,
        ] {
            assert!(open(&image(config)).is_err(), "{config}");
        }
        let long = "x".repeat(LARGEST_CONFIG as usize + 1);
        assert!(matches!(open(&image(&long)), Err(PauseError::File { .. })));
    }

    #[test]
    fn sandboxes_are_told_by_either_engine() {
        for key in MARKERS {
            assert!(is_sandbox(|k| (k == key).then_some("sandbox")));
            assert!(!is_sandbox(|k| (k == key).then_some("container")));
        }
        assert!(!is_sandbox(|_| None));
    }
}
