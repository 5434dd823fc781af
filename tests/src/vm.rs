// SPDX-License-Identifier: Apache-2.0
//! A booted guest: `Vm::boot(|guest| guest.cpus(2)).await`, or `Vm::shared().await` for stories that can share one.
//!
//! Owns what is specific to tests: which image is booted, how many VMs run at once, the shared VM and what is printed when a story
//! fails. The machine itself is rootfs-builder's.

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocols::agent::{CreateSandboxRequest, Storage};
use rootfs_builder::vm::{
    Disk, DiskKind, Firmware, Machine as MachineKind, Root, Share, Vm as Machine, VmConfig,
};
use tokio::net::UnixStream;
use tokio::sync::OnceCell;

use crate::agent::{Agent, Connect};
use crate::artifacts;
use crate::exit;
use crate::slots::{self, Slot};

/// The agent's RPC port.
pub const PORT: u32 = 1024;

/// What the agent's virtio-serial port is called in guests that have one.
pub const SERIAL_PORT: &str = "keelson.agent.0";

/// Where the guest mounts the shared directory, as every Kata host asks for.
pub const SHARED: &str = "/run/kata-containers/shared/containers";

/// How long a power-off may take.
const POWER_OFF: Duration = Duration::from_secs(60);

/// What to boot.
#[derive(Debug)]
pub struct Guest {
    pub(crate) config: VmConfig,
}

impl Guest {
    /// The guest's memory.
    pub fn memory_mib(mut self, size: u32) -> Guest {
        self.config.memory_mib = size;
        self
    }

    /// The number of processors.
    pub fn cpus(mut self, count: u32) -> Guest {
        self.config.cpus = count;
        self
    }

    /// Adds words to the kernel command line.
    pub fn words(mut self, words: &str) -> Guest {
        self.config
            .cmdline
            .extend(words.split(' ').map(str::to_owned));
        self
    }

    /// Offers a directory by virtio-fs.
    pub fn share(mut self, path: &Path) -> Guest {
        self.config.share = Some(Share {
            path: path.to_owned(),
            readonly: false,
            dax: false,
        });
        self
    }

    /// Adds a virtio-blk disk, `/dev/vda` for the first.
    pub fn disk(mut self, path: &Path) -> Guest {
        let path = path.to_owned();
        self.config.disks.push(Disk {
            path,
            serial: String::new(),
            readonly: false,
            kind: DiskKind::VirtioBlk,
        });
        self
    }

    /// Adds a read-only virtio-blk disk with a serial number.
    pub fn named_disk(mut self, path: &Path, serial: &str) -> Guest {
        self.config.disks.push(Disk {
            path: path.to_owned(),
            serial: serial.to_owned(),
            readonly: true,
            kind: DiskKind::VirtioBlk,
        });
        self
    }

    /// Adds persistent memory, `/dev/pmem0` for the first. The file's size must be a multiple of 2 MiB.
    pub fn persistent_memory(mut self, path: &Path, kind: DiskKind) -> Guest {
        self.config.disks.push(Disk {
            path: path.to_owned(),
            serial: String::new(),
            readonly: false,
            kind,
        });
        self
    }

    /// The guest's root is not the initramfs.
    pub fn root(mut self, root: Root) -> Guest {
        self.config.root = Some(root);
        self
    }

    /// The machine that QEMU plays.
    pub fn machine(mut self, machine: MachineKind) -> Guest {
        self.config.machine = machine;
        self
    }

    /// Who starts the kernel.
    pub fn firmware(mut self, firmware: Firmware) -> Guest {
        self.config.firmware = firmware;
        self
    }

    /// Adds arguments for QEMU.
    pub fn qemu(mut self, arguments: &[&str]) -> Guest {
        self.config
            .extra_args
            .extend(arguments.iter().map(|a| a.into()));
        self
    }
}

/// A machine that shows its console when the story that holds it fails.
struct Shown(Arc<Machine>);

/// A running guest with an agent that answers. Derefs to the [`Agent`].
pub struct Vm {
    machine: Shown,
    agent: Agent,
    _slot: Option<Slot>,
}

impl Deref for Vm {
    type Target = Agent;

    fn deref(&self) -> &Agent {
        &self.agent
    }
}

impl Vm {
    /// Boots a guest of the story's own and waits until its agent answers.
    pub async fn boot(shape: impl FnOnce(Guest) -> Guest) -> Vm {
        let config = artifacts::guest().await.config();
        Vm::start(config, shape, Some(slot().await)).await
    }

    /// A further guest of a story that has one already: it waits for no place of its own, since two stories that each had one would
    /// wait for each other.
    pub async fn boot_beside(_first: &Vm, shape: impl FnOnce(Guest) -> Guest) -> Vm {
        Vm::start(artifacts::guest().await.config(), shape, None).await
    }

    /// As [`Vm::boot`], with the kernel of a distributor, whose drivers are modules.
    pub async fn boot_distributors(shape: impl FnOnce(Guest) -> Guest) -> Vm {
        let config = artifacts::distributors_config().await;
        Vm::start(config, shape, Some(slot().await)).await
    }

    /// The same without an initramfs and with our own kernel, which mounts the root that `shape` gives it by itself.
    pub async fn boot_own(shape: impl FnOnce(Guest) -> Guest) -> Vm {
        let config = artifacts::own_config().await;
        Vm::start(config, shape, Some(slot().await)).await
    }

    /// The same with an initramfs in front of that root, in which our binary mounts it.
    pub async fn boot_through_init(shape: impl FnOnce(Guest) -> Guest) -> Vm {
        let config = artifacts::own_config_with_initramfs().await;
        Vm::start(config, shape, Some(slot().await)).await
    }

    /// The guest that the stories of this test process share, with its sandbox created. Container ids must be the story's own.
    pub async fn shared() -> Vm {
        static SHARED: OnceCell<(Arc<Machine>, Agent)> = OnceCell::const_new();
        let shared = SHARED.get_or_init(async || {
            let vm = Vm::start(artifacts::guest().await.config(), |g| g, None).await;
            vm.create_sandbox(|_| ()).await;
            // A static is never dropped: the processes die with this one, their directory has to be seen to.
            exit::remove_at_exit(vm.machine.dir().to_owned());
            (Arc::clone(&vm.machine), vm.agent.clone())
        });
        let (machine, agent) = shared.await.clone();
        Vm {
            machine: Shown(machine),
            agent,
            _slot: None,
        }
    }

    /// A guest without vsock, whose agent has the virtio-serial port [`SERIAL_PORT`]; the host's end is the socket `socket`, which takes
    /// one connection after the other.
    pub async fn boot_at_port(socket: &Path, shape: impl FnOnce(Guest) -> Guest) -> Vm {
        let mut config = artifacts::guest().await.config();
        // Its place is there, and nobody plugs it.
        config.late_vsock = true;
        let chardev = format!(
            "socket,id=agent,path={},server=on,wait=off",
            socket.display()
        );
        let device = format!("virtserialport,chardev=agent,name={SERIAL_PORT}");
        // The agent's word on each host that leaves is for the console.
        let words =
            format!("agent.server_addr=virtio-serial://{SERIAL_PORT} agent.log=debug loglevel=8");
        let guest = Guest { config }.words(&words).qemu(&[
            "-chardev",
            &chardev,
            "-device",
            "virtio-serial-pci",
            "-device",
            &device,
        ]);
        let slot = slot().await;
        let machine = Machine::start(shape(guest).config).await;
        let machine = machine.unwrap_or_else(|e| panic!("The VM does not start: {e:#}"));
        let socket = socket.to_owned();
        let connect: Arc<Connect> = Arc::new(move || Box::pin(connect_to(socket.clone())));
        Vm::reach(Shown(Arc::new(machine)), connect, Some(slot)).await
    }

    async fn start(config: VmConfig, shape: impl FnOnce(Guest) -> Guest, slot: Option<Slot>) -> Vm {
        let Guest { config } = shape(Guest { config });
        let machine = Machine::start(config)
            .await
            .unwrap_or_else(|e| panic!("The VM does not start: {e:#}"));
        Vm::meet(machine, slot).await
    }

    /// Waits until the agent of a machine that is on its way answers.
    pub(crate) async fn meet(machine: Machine, slot: Option<Slot>) -> Vm {
        let machine = Shown(Arc::new(machine));
        if let Err(e) = machine.connect(PORT).await {
            panic!("The agent's port does not open: {e:#}");
        }
        let door = Arc::clone(&machine);
        let connect: Arc<Connect> = Arc::new(move || {
            let door = door.clone();
            Box::pin(async move {
                door.connect(PORT)
                    .await
                    .unwrap_or_else(|e| panic!("The agent's port is closed: {e:#}"))
            })
        });
        Vm::reach(machine, connect, slot).await
    }

    async fn reach(machine: Shown, connect: Arc<Connect>, slot: Option<Slot>) -> Vm {
        let agent = Agent::reach(connect, artifacts::ROOTFS, "stories").await;
        let vm = Vm {
            machine,
            agent,
            _slot: slot,
        };
        vm.rpc()
            .check()
            .await
            .unwrap_or_else(|e| panic!("Check: {e}"));
        vm
    }

    /// The machine, for what the vocabulary has no word for.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Creates the sandbox, after `shape` has had its way with the request.
    pub async fn create_sandbox(&self, shape: impl FnOnce(&mut CreateSandboxRequest)) {
        let mut request = CreateSandboxRequest::new();
        request.hostname = "guest".to_owned();
        request.sandbox_id = "sandbox".to_owned();
        shape(&mut request);
        self.rpc()
            .create_sandbox(&request)
            .await
            .unwrap_or_else(|e| panic!("CreateSandbox: {e}"));
    }

    /// Leaves the port of [`Vm::boot_at_port`] as the host of this number, and waits until the guest has seen it.
    pub async fn leave(&mut self, host: u32) {
        self.agent.leave();
        self.expect_left(host).await;
    }

    /// Comes to the port as another host.
    pub async fn come_back(&mut self) {
        self.agent.come_back().await;
    }

    /// Waits until the guest has seen the host of this number leave.
    pub async fn expect_left(&self, host: u32) {
        let line = format!("The connection of host {host} ended by itself");
        let seen = self.machine.wait_line(&line, POWER_OFF).await;
        seen.unwrap_or_else(|e| panic!("Host {host}: {e:#}"));
    }

    /// Asks for the end of the sandbox and insists that the machine powers off.
    pub async fn expect_power_off(&self) {
        // The answer may lose the race against the power-off; hosts take a lost connection for success.
        let answer = self.rpc().destroy_sandbox(&Default::default()).await;
        if let Err(refusal) = answer {
            assert!(refusal.code.is_none(), "DestroySandbox: {refusal}");
        }
        let status = self
            .machine
            .wait_exit(POWER_OFF)
            .await
            .unwrap_or_else(|e| panic!("No power-off: {e:#}"));
        assert!(status.success(), "QEMU ended with {status}");
    }

    /// The console's lines so far.
    pub fn console(&self) -> Vec<String> {
        self.machine
            .lines()
            .into_iter()
            .map(|line| line.text)
            .collect()
    }
}

/// Connects to a socket of QEMU's, which makes it a moment after its start.
async fn connect_to(socket: PathBuf) -> UnixStream {
    loop {
        match UnixStream::connect(&socket).await {
            Ok(stream) => return stream,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(e) => panic!("{}: {e}", socket.display()),
        }
    }
}

/// One of the places for VMs that run at once; waits until one is free.
pub async fn slot() -> Slot {
    let slot = slots::take(&artifacts::slots_dir(), slots::limit()).await;
    slot.unwrap_or_else(|e| panic!("No slot for a VM: {e:#}"))
}

impl Deref for Shown {
    type Target = Arc<Machine>;

    fn deref(&self) -> &Arc<Machine> {
        &self.0
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.report());
        }
    }
}

/// The storage that mounts the shared directory where hosts want it.
pub fn shared_storage() -> Storage {
    storage("virtio-fs", "kataShared", "virtiofs", SHARED, &["nodev"])
}

/// A storage entry.
pub fn storage(
    driver: &str,
    source: &str,
    fstype: &str,
    mount_point: &str,
    options: &[&str],
) -> Storage {
    let mut storage = Storage::new();
    storage.driver = driver.to_owned();
    storage.source = source.to_owned();
    storage.fstype = fstype.to_owned();
    storage.mount_point = mount_point.to_owned();
    storage.options = options.iter().map(|&o| o.to_owned()).collect();
    storage
}

/// A raw disk image of `mib` MiB with an ext4 file system that holds the tree `from`, if any.
pub fn ext4_image(path: &Path, mib: u32, from: Option<&Path>) -> PathBuf {
    let mut command = std::process::Command::new("mkfs.ext4");
    command.env("PATH", search_path()).args(["-q", "-F"]);
    if let Some(tree) = from {
        command.arg("-d").arg(tree);
    }
    command.arg(path).arg(format!("{mib}M"));
    command.stdout(std::process::Stdio::null());
    let status = command
        .status()
        .unwrap_or_else(|e| panic!("Cannot run mkfs.ext4 (package e2fsprogs): {e}"));
    assert!(status.success(), "mkfs.ext4 {}: {status}", path.display());
    path.to_owned()
}

/// The user's search path, and the directories of the system's own programs that it may lack.
pub(crate) fn search_path() -> String {
    format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    )
}
