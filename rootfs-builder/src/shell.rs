// SPDX-License-Identifier: Apache-2.0
//! A shell in the guest itself: what PID 1 sees, with all of its rights, for looking at an image from inside.
//!
//! Uses what `run` is made of; only the container is another one. In an image that has a shell the process runs on the image's own root,
//! in no namespace of its own. Elsewhere it brings a root along, like a container, and finds the guest's at `/mnt`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use protobuf::MessageField;
use protocols::agent::CreateContainerRequest;

use crate::cache::Cache;
use crate::progress::Progress;
use crate::run::boot::BootArgs;
use crate::run::plan::{self, Plan};
use crate::run::prepare::{self, Prepared, Wanted};
use crate::run::run_plan;
use crate::spec::{self, ProcessOptions};
use crate::terminal;
use crate::timings::Timings;
use crate::vm::Share;

/// What is run where no command is given.
const SHELL: &str = "/bin/sh";

/// Boot an image and open a shell in the guest itself
///
/// The shell sees the guest as its first process does: all processes, all devices, all rights. If the image has a shell it runs on the
/// image's root; otherwise it runs on a root of its own, given by --rootfs or a small Debian, and finds the guest's root at /mnt.
///
/// With a command, runs that instead. Exits like `run`.
#[derive(Clone, Debug, Args)]
pub struct ShellArgs {
    /// Where the shell comes from: a directory, an OCI image layout, or an archive of `docker save`
    #[arg(long, value_name = "PATH")]
    pub rootfs: Option<PathBuf>,
    /// Install what the host lacks
    #[arg(long)]
    pub setup: bool,
    /// The VM
    #[command(flatten)]
    pub boot: BootArgs,
    /// A command to run instead of a shell, and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Boots the image and opens the shell; the exit code of what ran in it.
pub fn execute(args: &ShellArgs, cache: &Cache, progress: &dyn Progress) -> Result<u8> {
    let mut timings = Timings::start();
    let mut wanted = Wanted::new(&args.boot, None)?;
    let own_root = match wanted.image() {
        Some(image) if args.rootfs.is_none() => !image.has_shell()?,
        _ => true,
    };
    if own_root {
        wanted.bring_root(prepare::root_source(args.rootfs.as_deref())?);
    }
    let prepared = wanted.prepare(args.setup, cache, progress)?;
    let session = Session {
        terminal: terminal::is_full(),
        command: command(args),
    };
    let plan = session.plan(prepared, args.boot.dax)?;
    timings.end("prepare");
    run_plan(&plan, &args.boot, timings)
}

/// The process in the guest.
struct Session {
    terminal: bool,
    command: Vec<String>,
}

impl Session {
    fn plan(&self, prepared: Prepared, dax: bool) -> Result<Plan> {
        let id = plan::container_id(std::process::id());
        let mut vm = prepared.vm;
        let (sandbox, container) = match prepared.root {
            Some(root) => {
                vm.share = Some(Share {
                    path: root,
                    readonly: true,
                    dax,
                });
                let ordinary = plan::container(&id, false, ProcessOptions::default());
                let Some(root) = ordinary.OCI.Root.as_ref().map(|root| root.Path.clone()) else {
                    bail!("There is no root for the shell");
                };
                let spec = spec::guest(&id, Some(&root), &self.process());
                let container = CreateContainerRequest {
                    OCI: MessageField::some(spec),
                    ..ordinary
                };
                (plan::sandbox(&id, false, dax), container)
            }
            None => {
                let spec = spec::guest(&id, None, &self.process());
                let container = CreateContainerRequest {
                    container_id: id.clone(),
                    exec_id: id.clone(),
                    OCI: MessageField::some(spec),
                    ..Default::default()
                };
                (plan::empty_sandbox(&id), container)
            }
        };
        Ok(Plan {
            vm,
            id,
            sandbox,
            container,
            interactive: true,
            terminal: self.terminal,
        })
    }

    fn process(&self) -> ProcessOptions {
        ProcessOptions {
            args: self.command.clone(),
            env: vec!["HOME=/root".to_owned()],
            terminal: self.terminal.then(terminal::size),
            ..Default::default()
        }
    }
}

fn command(args: &ShellArgs) -> Vec<String> {
    if args.command.is_empty() {
        vec![SHELL.to_owned()]
    } else {
        args.command.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::tests::config;
    use clap::Parser;
    use guest_kernel::Arch;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        args: ShellArgs,
    }

    fn parse(words: &[&str]) -> ShellArgs {
        let words = [&["shell"], words].concat();
        Program::try_parse_from(words).unwrap().args
    }

    fn plan(root: Option<&str>) -> Plan {
        let prepared = Prepared {
            vm: config(Arch::X86_64),
            root: root.map(PathBuf::from),
            image: Default::default(),
        };
        let session = Session {
            terminal: false,
            command: vec!["ls".to_owned()],
        };
        session.plan(prepared, false).unwrap()
    }

    #[test]
    fn a_command_takes_the_shells_place() {
        assert_eq!(command(&parse(&[])), [SHELL]);
        assert_eq!(command(&parse(&["--", "ls", "-l"])), ["ls", "-l"]);
    }

    #[test]
    fn a_root_that_is_brought_along_is_shared_and_stays_as_it_is() {
        let plan = plan(Some("/r"));
        let share = plan.vm.share.unwrap();
        assert!(share.readonly && share.path.as_os_str() == "/r");
        assert_eq!(plan.sandbox.storages.len(), 1);
        assert_eq!(
            plan.container.storages[0].mount_point,
            plan.container.OCI.Root.Path
        );
        assert_eq!(plan.container.OCI.Mounts.last().unwrap().source, "/");
    }

    #[test]
    fn without_one_the_guests_own_is_used() {
        let plan = plan(None);
        assert!(plan.vm.share.is_none() && plan.sandbox.storages.is_empty());
        assert!(plan.container.storages.is_empty());
        assert_eq!(plan.container.OCI.Root.Path, "/");
        assert_eq!(plan.container.OCI.Process.Args, ["ls"]);
    }
}
