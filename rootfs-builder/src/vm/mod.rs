// SPDX-License-Identifier: Apache-2.0
//! One virtual machine: QEMU, a vsock device and a file-system daemon, all three processes of ours.
//!
//! Owns the processes, their sockets and logs (in a temporary directory) and the console. A [`Vm`] leaves nothing behind: its processes
//! are killed, by their own ids, when it is stopped or dropped, and by the kernel when this process goes first. It never talks
//! to the agent; it only hands out connections to it.

mod accel;
mod config;
pub mod console;
mod dir;
mod driver;
mod error;
mod process;
mod qemu;
pub mod qmp;
pub mod root;
pub mod tools;
pub mod virtiofs;
pub mod vsock;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

pub use config::{
    Accel, Disk, DiskKind, Firmware, LATE_VSOCK, Machine, Root, RootDevice, RootVerity, Share,
    VmConfig,
};
pub use console::{Console, Line};
pub use driver::DEVICE as VSOCK_DEVICE;
pub use error::VmError;
pub use qmp::{Qmp, QmpError};
pub use tools::Tools;

use dir::VmDir;
use process::Child;
use virtiofs::Virtiofs;
use vsock::Vsock;

/// The kernel's first line.
const BANNER: &str = "Linux version ";
/// How long a boot may take. Under TCG on a loaded host a slow one takes half a minute.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// How long a helper may take to open its socket.
const HELPER_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause between two attempts at something that gives no notice: a helper's socket, a port of the guest.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// When, by the host's clock, the boot passed its stations.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// QEMU was started.
    pub spawn: Instant,
    /// The kernel's first line arrived.
    pub banner: Option<Instant>,
    /// The kernel handed over to our binary.
    pub init: Option<Instant>,
    /// The agent said that it listens.
    pub listening: Option<Instant>,
}

/// A running virtual machine.
#[derive(Debug)]
pub struct Vm {
    // QEMU first: fields are dropped in this order, and the helpers go with their client.
    qemu: Child,
    virtiofs: Vec<Virtiofs>,
    vsock: Vsock,
    console: Console,
    spawned: Instant,
    modular: bool,
    accel: Accel,
    silenced: bool,
    late_vsock: bool,
    /// Where QEMU keeps the vsock device.
    backend: &'static str,
    qmp_socket: PathBuf,
    status_socket: PathBuf,
    dir: VmDir,
}

impl Vm {
    /// Starts the VM. Returns as soon as QEMU runs; the guest boots meanwhile.
    pub async fn start(mut config: VmConfig) -> Result<Vm, VmError> {
        qemu::machine::check(&config)?;
        let dir = VmDir::create(config.keep_dir)?;
        let programs = Programs::of(&config);
        let machine = qemu::machine::traits(config.arch, config.machine);
        config.accel =
            accel::resolve(config.accel, config.arch, &programs.qemu, machine.name).await;
        let vsock = Vsock::start(&config.tools.vsock, dir.path()).await?;
        let mut virtiofs = Vec::new();
        for (tag, share) in config.all_shares() {
            virtiofs.push(Virtiofs::start(&programs.virtiofsd, tag, &share, dir.path()).await?);
        }
        let qmp_socket = dir.path().join("qmp.sock");
        let status_socket = dir.path().join("status.sock");
        let sockets = qemu::Sockets {
            vsock: &vsock.device_socket,
            shares: virtiofs.iter().map(Virtiofs::for_qemu).collect(),
            qmp: &qmp_socket,
            status: &status_socket,
        };
        let mut command = Command::new(&programs.qemu);
        command.args(qemu::arguments(&config, &sockets)?);
        let spawned = Instant::now();
        let (qemu, stdout) = Child::spawn("QEMU", command, &dir.path().join("qemu.log"), true)?;
        let console = follow_console(stdout, dir.path(), config.echo_console)?;
        Ok(Vm {
            qemu,
            virtiofs,
            vsock,
            console,
            spawned,
            modular: config.modular,
            accel: config.accel,
            silenced: driver::is_silenced(&config.cmdline),
            late_vsock: config.late_vsock,
            backend: driver::backend(machine.bus),
            qmp_socket,
            status_socket,
            dir,
        })
    }

    /// Connects to `port` of the guest: waits until the guest's vsock driver can be there, then tries until somebody listens, 180 s at most.
    pub async fn connect(&self, port: u32) -> Result<UnixStream, VmError> {
        self.connect_within(port, BOOT_TIMEOUT).await
    }

    /// As [`Vm::connect`], with a limit of one's own.
    pub async fn connect_within(
        &self,
        port: u32,
        timeout: Duration,
    ) -> Result<UnixStream, VmError> {
        let deadline = Instant::now() + timeout;
        self.wait_driver(timeout).await?;
        loop {
            match self.vsock.connect(port).await {
                Ok(stream) => return Ok(stream),
                Err(_) if Instant::now() < deadline && self.qemu.status().is_none() => {}
                Err(_) if self.qemu.status().is_some() => {
                    return Err(self.gone(&format!("vsock port {port}")));
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Tries once to connect to `port`. Not to be used before [`Vm::connect`] has succeeded once: the vsock device does not
    /// survive a connection made before the guest's driver is there.
    pub async fn try_connect(&self, port: u32) -> Result<UnixStream, VmError> {
        self.vsock.connect(port).await
    }

    async fn wait_driver(&self, timeout: Duration) -> Result<(), VmError> {
        if self.late_vsock {
            // The console says nothing of a device that is plugged in.
            let started = driver::asked(&self.status_socket, self.backend);
            if tokio::time::timeout(timeout, started).await.is_ok() {
                return Ok(());
            }
            return Err(self.missed("the guest's vsock driver", timeout).await);
        }
        let monitor = self
            .silenced
            .then_some((self.status_socket.as_path(), self.backend));
        if driver::wait(&self.console, self.modular, monitor, timeout).await {
            return Ok(());
        }
        Err(self.missed("the guest's vsock driver", timeout).await)
    }

    /// The console's text so far.
    pub fn console(&self) -> String {
        self.console.text()
    }

    /// The console's lines so far, each with its time.
    pub fn lines(&self) -> Vec<Line> {
        self.console.lines()
    }

    /// Waits for the first console line that contains `pattern`, among those already there too.
    pub async fn wait_line(&self, pattern: &str, timeout: Duration) -> Result<Line, VmError> {
        match self
            .console
            .wait(|line| line.contains(pattern), timeout)
            .await
        {
            Some(line) => Ok(line),
            None => Err(self
                .missed(&format!("console line {pattern:?}"), timeout)
                .await),
        }
    }

    /// How QEMU ended, if it has.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.qemu.status()
    }

    /// Waits, without limit, until QEMU ends; the error to report if it was still needed.
    pub async fn ended(&self) -> VmError {
        self.qemu.wait().await;
        self.gone("the container")
    }

    /// Waits until QEMU ends, which is also how a guest's power-off, reboot or panic looks from outside.
    pub async fn wait_exit(&self, timeout: Duration) -> Result<ExitStatus, VmError> {
        let late = || VmError::Timeout {
            what: "its end".into(),
            after: timeout,
        };
        self.qemu.wait_for(timeout).await.ok_or_else(late)
    }

    /// Kills the VM and waits until all its processes are gone.
    pub async fn stop(self) {
        self.qemu.kill();
        self.qemu.wait().await;
        for virtiofs in &self.virtiofs {
            virtiofs.process.kill();
            virtiofs.process.wait().await;
        }
        self.vsock.process.kill();
        self.vsock.process.wait().await;
    }

    /// A new connection to QEMU's monitor. QEMU serves one at a time.
    pub async fn qmp(&self) -> Result<Qmp, QmpError> {
        Qmp::connect(&self.qmp_socket).await
    }

    /// When the boot passed its stations, as far as it has.
    pub fn times(&self) -> Times {
        let at = |wanted: &dyn Fn(&str) -> bool| self.console.find(wanted).map(|line| line.at);
        Times {
            spawn: self.spawned,
            banner: at(&|line| line.contains(BANNER)),
            init: at(&driver::is_run_init),
            listening: at(&driver::is_listening),
        }
    }

    /// How the processor is made: by KVM or by TCG.
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// The unix socket that speaks the hybrid-vsock handshake, for programs that want to connect themselves.
    pub fn vsock_socket(&self) -> &Path {
        &self.vsock.host_socket
    }

    /// The directory with the sockets and logs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// All there is to read when something failed: the console's end and what the host programs wrote.
    pub fn report(&self) -> String {
        let mut text = format!("---- console, last lines ----\n{}\n", self.console.tail(60));
        let programs = [
            ("QEMU", &self.qemu),
            ("vhost-device-vsock", &self.vsock.process),
        ];
        let virtiofs = self.virtiofs.iter().map(|v| ("virtiofsd", &v.process));
        for (name, child) in programs.into_iter().chain(virtiofs) {
            let log = child.log();
            if !log.trim().is_empty() {
                text.push_str(&format!("---- {name} ----\n{}\n", log.trim_end()));
            }
        }
        text
    }

    /// The error for something that was waited for in vain: a host program's end explains it best.
    async fn missed(&self, what: &str, after: Duration) -> VmError {
        // The console ends a moment before QEMU's status is known.
        let settled = self.qemu.wait_for(Duration::from_millis(200)).await;
        if settled.is_some_and(|status| !status.success())
            && let Some(error) = self.qemu.ended()
        {
            return error;
        }
        if settled.is_some() {
            return self.gone(what);
        }
        if let Some(error) = self.vsock.process.ended() {
            return error;
        }
        VmError::Timeout {
            what: what.to_owned(),
            after,
        }
    }

    fn gone(&self, what: &str) -> VmError {
        VmError::Gone {
            what: what.to_owned(),
        }
    }
}

/// The programs for a VM: the usual ones, or the user's if it has a share with a window.
struct Programs {
    qemu: PathBuf,
    virtiofsd: PathBuf,
}

impl Programs {
    fn of(config: &VmConfig) -> Programs {
        let tools = &config.tools;
        let window = config.all_shares().any(|(_, share)| share.dax);
        match tools.dax.as_ref().filter(|_| window) {
            Some(dax) => Programs {
                qemu: dax.qemu.clone(),
                virtiofsd: dax.virtiofsd.clone(),
            },
            None => Programs {
                qemu: tools.qemu.clone(),
                virtiofsd: tools.virtiofsd.clone(),
            },
        }
    }
}

fn follow_console(
    stdout: Option<std::process::ChildStdout>,
    dir: &Path,
    echo: bool,
) -> Result<Console, VmError> {
    let path = dir.join("console.log");
    let log = std::fs::File::create(&path).map_err(VmError::io("create", &path))?;
    let mut copies: Vec<Box<dyn io::Write + Send>> = vec![Box::new(log)];
    if echo {
        copies.push(Box::new(io::stderr()));
    }
    let console = match stdout {
        Some(stdout) => Console::follow(stdout, copies),
        None => Console::follow(io::empty(), copies),
    };
    console.map_err(|source| VmError::Spawn {
        program: "the console's reader",
        source,
    })
}

/// Waits until a helper has made its socket. It gives no other sign of being ready.
async fn wait_for_socket(process: &Child, socket: &Path) -> Result<(), VmError> {
    let deadline = Instant::now() + HELPER_TIMEOUT;
    while !socket.exists() {
        if let Some(error) = process.ended() {
            return Err(error);
        }
        if Instant::now() > deadline {
            return Err(process.not_ready(HELPER_TIMEOUT));
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use guest_kernel::{Arch, Kernel};

    /// A configuration that refers to nothing real.
    pub(crate) fn config(arch: Arch) -> VmConfig {
        let kernel = Kernel {
            image: "/k/bzImage".into(),
            vmlinux: None,
            config: "/k/config".into(),
            release: "6.12.0".into(),
            modules: Vec::new(),
            source: guest_kernel::Source::Fetched,
        };
        let tools = Tools {
            qemu: "/q".into(),
            vsock: "/v".into(),
            virtiofsd: "/f".into(),
            firmware: None,
            dax: None,
        };
        let mut config = VmConfig::new(arch, &kernel, "/k/initramfs", tools);
        config.cpus = 2;
        config.cmdline = vec!["quiet".into()];
        config.accel = Accel::Tcg;
        config
    }

    #[tokio::test]
    async fn a_helper_that_fails_is_named_with_its_log() {
        let mut config = config(Arch::X86_64);
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("vsock");
        std::fs::write(&script, "#!/bin/sh\necho no such thing >&2\nexit 7\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        config.tools.vsock = script;
        let error = Vm::start(config).await.unwrap_err().to_string();
        assert!(
            error.contains("vhost-device-vsock ended too early") && error.contains("no such thing"),
            "{error}"
        );
    }
}
