// SPDX-License-Identifier: Apache-2.0
//! What a run will ask for, decided before anything is started: the VM, the sandbox, the container.
//!
//! The container's root is the share itself, mounted under the name Kata uses for shared roots. It is shared read-only, with an overlay
//! above it whose upper half lies in the guest's memory: the directory on the host stays as it is, and any number of runs
//! may use it at once. With `--writable` the share is the root, and changes are real.

use std::path::Path;

use protobuf::MessageField;
use protocols::agent::{CreateContainerRequest, CreateSandboxRequest, Storage};

use super::args::Args;
use super::prepare::Prepared;
use super::users;
use crate::base::ImageConfig;
use crate::spec::{self, ContainerOptions, ProcessOptions};
use crate::terminal;
use crate::vm::virtiofs::TAG;
use crate::vm::{Share, VmConfig};

/// Where Kata's hosts mount shared container roots (protocol section 4.1).
const SHARED: &str = "/run/kata-containers/shared/containers";
/// Where the agent expects container roots of its own (protocol section 4.1).
const BUNDLES: &str = "/run/kata-containers";
/// Asks the agent for an overlay's upper and work directories (protocol section 5.4).
const OVERLAY_RW: &str = "io.katacontainers.fs-opt.overlay-rw";
/// The guest's host name.
const HOSTNAME: &str = "keelson";
/// What runs when neither the user nor the image names a command: it tells where it runs.
const TELL: &str = r#". /etc/os-release 2>/dev/null
echo "Hello from ${PRETTY_NAME:-a container} in a VM: $(uname -srm), pid $$, host name $(cat /proc/sys/kernel/hostname)""#;

/// All requests of one run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The VM.
    pub vm: VmConfig,
    /// The container's id, and the sandbox's.
    pub id: String,
    /// The sandbox.
    pub sandbox: CreateSandboxRequest,
    /// The container.
    pub container: CreateContainerRequest,
    /// Pass standard input on.
    pub interactive: bool,
    /// The process has a terminal.
    pub terminal: bool,
}

impl Plan {
    /// Decides everything.
    pub fn new(args: &Args, prepared: Prepared) -> Result<Plan, PlanError> {
        let id = container_id(std::process::id());
        let root = prepared.root.ok_or(PlanError::NoRoot)?;
        let process = process_options(args, &prepared.image, &root)?;
        let mut vm = prepared.vm;
        vm.share = Some(Share {
            path: root,
            readonly: !args.writable,
            dax: args.boot.dax,
        });
        Ok(Plan {
            vm,
            sandbox: sandbox(&id, args.writable, args.boot.dax),
            container: container(&id, args.writable, process),
            interactive: args.interactive,
            terminal: args.tty,
            id,
        })
    }
}

/// Why a run cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Who shall run the command is not known.
    #[error(transparent)]
    User(#[from] users::UserError),
    /// A container needs a root.
    #[error("There is no root for the container")]
    NoRoot,
}

/// Unlike any other on this machine at this time, and valid by the agent's rules (protocol section 3.2).
pub(crate) fn container_id(pid: u32) -> String {
    format!("run-{pid}")
}

/// The sandbox, with the container's root mounted in it. `dax`: the share has a window.
pub(crate) fn sandbox(id: &str, writable: bool, dax: bool) -> CreateSandboxRequest {
    let option = if writable { "rw" } else { "ro" };
    let mut options = vec![option.to_owned(), "nodev".to_owned()];
    if dax {
        options.push("dax=always".to_owned());
    }
    let share = Storage {
        driver: "virtio-fs".into(),
        source: TAG.into(),
        fstype: "virtiofs".into(),
        options,
        mount_point: shared_root(id),
        ..Default::default()
    };
    CreateSandboxRequest {
        storages: vec![share],
        ..empty_sandbox(id)
    }
}

/// A sandbox without anything mounted in it.
pub(crate) fn empty_sandbox(id: &str) -> CreateSandboxRequest {
    CreateSandboxRequest {
        hostname: HOSTNAME.into(),
        sandbox_id: id.into(),
        ..Default::default()
    }
}

fn shared_root(id: &str) -> String {
    format!("{SHARED}/{id}/rootfs")
}

/// The container, on the share itself or on an overlay above it.
pub(crate) fn container(
    id: &str,
    writable: bool,
    process: ProcessOptions,
) -> CreateContainerRequest {
    let (root, storages) = if writable {
        (shared_root(id), Vec::new())
    } else {
        let overlay = overlay(id);
        (overlay.mount_point.clone(), vec![overlay])
    };
    let options = ContainerOptions {
        id: id.into(),
        root,
        readonly: false,
        process,
    };
    CreateContainerRequest {
        container_id: id.into(),
        exec_id: id.into(),
        storages,
        OCI: MessageField::some(spec::container(&options)),
        ..Default::default()
    }
}

fn overlay(id: &str) -> Storage {
    Storage {
        driver: "overlayfs".into(),
        source: "overlay".into(),
        fstype: "overlay".into(),
        options: vec![OVERLAY_RW.into(), format!("lowerdir={}", shared_root(id))],
        mount_point: format!("{BUNDLES}/{id}/rootfs"),
        ..Default::default()
    }
}

fn process_options(
    args: &Args,
    image: &ImageConfig,
    root: &Path,
) -> Result<ProcessOptions, users::UserError> {
    let found = users::find(root, args.user.as_deref().unwrap_or(&image.user))?;
    let home = if found.home.is_empty() {
        "/"
    } else {
        &found.home
    };
    let mut env = vec![format!("HOME={home}")];
    env.extend(image.env.iter().cloned());
    env.extend(args.env.iter().cloned());
    Ok(ProcessOptions {
        args: command(args, image),
        env,
        cwd: args
            .workdir
            .clone()
            .unwrap_or_else(|| image.working_dir.clone()),
        user: found.user,
        terminal: args.tty.then(terminal::size),
    })
}

/// The image's entry point with the user's words, or else the image's, as container engines put them together.
fn command(args: &Args, image: &ImageConfig) -> Vec<String> {
    let words = if args.command.is_empty() {
        &image.cmd
    } else {
        &args.command
    };
    let line: Vec<String> = image.entrypoint.iter().chain(words).cloned().collect();
    if line.is_empty() {
        ["/bin/sh", "-c", TELL].map(String::from).into()
    } else {
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        Program::try_parse_from([&["run"], words].concat())
            .unwrap()
            .args
    }

    fn words(line: &[&str]) -> Vec<String> {
        line.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_shared_directory_stays_as_it_is() {
        let sandbox = sandbox("run-1", false, false);
        assert_eq!(
            sandbox.storages[0].mount_point,
            "/run/kata-containers/shared/containers/run-1/rootfs"
        );
        assert_eq!(sandbox.storages[0].options, ["ro", "nodev"]);
        let container = container("run-1", false, ProcessOptions::default());
        let overlay = &container.storages[0];
        assert_eq!(
            overlay.options[1],
            "lowerdir=/run/kata-containers/shared/containers/run-1/rootfs"
        );
        assert_eq!(overlay.mount_point, container.OCI.Root.Path);
    }

    #[test]
    fn writable_means_the_share_is_the_root() {
        let container = container("run-1", true, ProcessOptions::default());
        assert!(container.storages.is_empty());
        assert_eq!(
            container.OCI.Root.Path,
            sandbox("run-1", true, false).storages[0].mount_point
        );
    }

    #[test]
    fn commands_are_put_together_as_engines_do() {
        let image = ImageConfig {
            entrypoint: words(&["e"]),
            cmd: words(&["c"]),
            ..Default::default()
        };
        assert_eq!(command(&args(&[]), &image), ["e", "c"]);
        assert_eq!(command(&args(&["--", "x", "y"]), &image), ["e", "x", "y"]);
        assert_eq!(command(&args(&["--", "x"]), &ImageConfig::default()), ["x"]);
        assert_eq!(command(&args(&[]), &ImageConfig::default())[0], "/bin/sh");
    }

    #[test]
    fn the_users_words_win_over_the_images() {
        let root = tempfile::tempdir().unwrap();
        let image = ImageConfig {
            env: words(&["A=image"]),
            working_dir: "/srv".into(),
            user: "5".into(),
            ..Default::default()
        };
        let process =
            process_options(&args(&["-e", "A=user", "--", "x"]), &image, root.path()).unwrap();
        assert_eq!((process.user.uid, process.cwd.as_str()), (5, "/srv"));
        assert_eq!(process.env, ["HOME=/", "A=image", "A=user"]);
        let process = process_options(
            &args(&["-u", "7:8", "-w", "/tmp", "--", "x"]),
            &image,
            root.path(),
        )
        .unwrap();
        assert_eq!(
            (process.user.uid, process.user.gid, process.cwd.as_str()),
            (7, 8, "/tmp")
        );
    }
}
