// SPDX-License-Identifier: Apache-2.0
//! What the stories run: the agent's binary, the kernel, the initramfs, the root file systems. Each is made once and cached.
//!
//! The runner prepares all of it before the tests start; a test that is run by itself makes what is missing.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use guest_kernel::{Arch, BuildOptions, Kernel};
use rootfs_builder::assemble::{self, Base, Compression, Initramfs};
use rootfs_builder::base::RootSource;
use rootfs_builder::cache::{Cache, Key};
use rootfs_builder::progress::{Progress, Silent};
use rootfs_builder::toolchain;
use rootfs_builder::vm::{Tools, VmConfig};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::roots::{self, Parts};
use crate::{rootfs, vm};

/// The variable that names the agent's static binary; without it the binary is built.
pub const AGENT_VARIABLE: &str = "KEELSON_TEST_AGENT";

/// The variable that says which kernel VMs boot: `built`, our own, which is the default, or `fetched`, a distributor's.
pub const KERNEL_VARIABLE: &str = "KEELSON_TEST_KERNEL";

/// The variable that says for which architecture VMs are: this machine's, which is the default, or another, which is emulated.
pub const ARCH_VARIABLE: &str = "KEELSON_TEST_ARCH";

/// Where the tests' root file system lies in the guest.
pub const ROOTFS: &str = "/opt/image";

/// What `/etc/marker` of [`root_disk`] holds.
pub const ROOT_DISK_MARKER: &str = "the root disk";

/// Says what to do when something that a story needs is not there.
const HINT: &str =
    "Hint: `cargo run --release -p tests -- --setup` installs and builds what the tests need";

/// Everything that a VM is booted from.
#[derive(Debug)]
pub struct GuestImage {
    arch: Arch,
    kernel: Kernel,
    initramfs: PathBuf,
    tools: Tools,
}

impl GuestImage {
    /// A VM of the usual shape with this image.
    pub fn config(&self) -> VmConfig {
        VmConfig::new(self.arch, &self.kernel, &self.initramfs, self.tools.clone())
    }

    fn make(parts: &Parts, progress: &dyn Progress) -> Result<GuestImage> {
        let (arch, cache) = (parts.arch, Cache::open()?);
        let tools = Tools::find(arch, &cache).context(HINT)?;
        let kernel = kernel(arch, &cache, progress)?;
        let initramfs = initramfs(parts, &kernel, &cache, progress)?;
        Ok(GuestImage {
            arch,
            kernel,
            initramfs,
            tools,
        })
    }
}

/// The kernel under the guest: our own or the distributor's, see [`KERNEL_VARIABLE`].
fn kernel(arch: Arch, cache: &Cache, progress: &dyn Progress) -> Result<Kernel> {
    match std::env::var(KERNEL_VARIABLE).as_deref() {
        Err(_) | Ok("built") => built_kernel(arch, cache, progress),
        Ok("fetched") => Ok(guest_kernel::fetch(arch, cache, progress)?),
        Ok(other) => bail!("{KERNEL_VARIABLE} is {other:?}; fetched and built are possible"),
    }
}

/// Our own kernel, which finds its root by itself.
pub fn built_kernel(arch: Arch, cache: &Cache, progress: &dyn Progress) -> Result<Kernel> {
    let options = BuildOptions::default();
    Ok(guest_kernel::build(arch, &options, cache, progress)?)
}

/// The agent and the kernel's modules, with the tests' root file system inside.
fn initramfs(
    parts: &Parts,
    kernel: &Kernel,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let what = Initramfs {
        arch: parts.arch,
        binary: &parts.agent,
        kernel: Some(kernel),
        base: Base::Root(RootSource::Dir(base(
            parts.arch,
            &parts.probe,
            cache,
            progress,
        )?)),
        compression: Compression::None,
    };
    Ok(assemble::initramfs(&what, cache, progress)?)
}

/// The architecture of the VMs.
pub fn arch() -> Arch {
    match std::env::var(ARCH_VARIABLE) {
        Ok(name) => name
            .parse()
            .unwrap_or_else(|e| panic!("{ARCH_VARIABLE}: {e}")),
        Err(_) => Arch::host().expect("the tests run on an architecture that guests can have"),
    }
}

/// Makes everything that VM stories need, so that they find it made.
pub fn prepare(parts: &Parts, progress: &dyn Progress) -> Result<()> {
    GuestImage::make(parts, progress).map(drop)
}

/// The image that VMs are booted from.
pub async fn guest() -> &'static GuestImage {
    static GUEST: OnceCell<GuestImage> = OnceCell::const_new();
    let made = GUEST.get_or_try_init(|| async {
        let make = || GuestImage::make(&Parts::of_environment()?, &Silent);
        tokio::task::spawn_blocking(make)
            .await
            .context("The maker of the guest image fell over")?
    });
    made.await
        .unwrap_or_else(|e| panic!("The guest cannot be made: {e:#}\n{HINT}"))
}

/// A VM of the usual shape with the distributor's kernel, most of which is modules.
pub async fn distributors_config() -> VmConfig {
    let make = || {
        let (cache, parts) = (Cache::open()?, Parts::of_environment()?);
        let kernel = guest_kernel::fetch(parts.arch, &cache, &Silent)?;
        let initramfs = initramfs(&parts, &kernel, &cache, &Silent)?;
        Ok::<_, anyhow::Error>((kernel, initramfs))
    };
    let made = tokio::task::spawn_blocking(make).await;
    let made = made.unwrap_or_else(|e| panic!("The maker of the initramfs fell over: {e}"));
    let (kernel, initramfs) = made.unwrap_or_else(|e| panic!("No initramfs: {e:#}\n{HINT}"));
    let tools = guest().await.tools.clone();
    VmConfig::new(arch(), &kernel, &initramfs, tools)
}

/// A VM of the usual shape with our own kernel and without an initramfs; it needs a root.
pub async fn own_config() -> VmConfig {
    static KERNEL: OnceCell<Kernel> = OnceCell::const_new();
    let built = KERNEL.get_or_try_init(|| async {
        let build = || built_kernel(arch(), &Cache::open()?, &Silent);
        tokio::task::spawn_blocking(build)
            .await
            .context("The maker of the kernel fell over")?
    });
    let kernel = built
        .await
        .unwrap_or_else(|e| panic!("No kernel of our own: {e:#}\n{HINT}"));
    let tools = guest().await.tools.clone();
    let mut config = VmConfig::new(arch(), kernel, "", tools);
    config.initramfs = None;
    config
}

/// The same with an initramfs in front of the root, in which our binary mounts it.
pub async fn own_config_with_initramfs() -> VmConfig {
    let make = || {
        let (cache, parts) = (Cache::open()?, Parts::of_environment()?);
        let kernel = built_kernel(parts.arch, &cache, &Silent)?;
        initramfs(&parts, &kernel, &cache, &Silent)
    };
    let made = tokio::task::spawn_blocking(make).await;
    let made = made.unwrap_or_else(|e| panic!("The maker of the initramfs fell over: {e}"));
    let mut config = own_config().await;
    config.initramfs = Some(made.unwrap_or_else(|e| panic!("No initramfs: {e:#}\n{HINT}")));
    config
}

/// The agent's static binary, as guests run it.
pub fn static_agent() -> Result<PathBuf> {
    match std::env::var_os(AGENT_VARIABLE) {
        Some(path) => Ok(path.into()),
        None => Ok(toolchain::guest_binary(arch(), &Cache::open()?, &Silent)?),
    }
}

/// The static program that reports what a container sees, see [`roots::PROBE_VARIABLE`].
pub fn static_probe() -> Result<PathBuf> {
    match std::env::var_os(roots::PROBE_VARIABLE) {
        Some(path) => Ok(path.into()),
        None => roots::probe(arch(), &Silent),
    }
}

/// The agent's binary for stories without a VM: the static one if it is known, else a quick build for this host.
pub fn service_agent() -> Result<PathBuf> {
    static AGENT: std::sync::OnceLock<Result<PathBuf, String>> = std::sync::OnceLock::new();
    let made = AGENT.get_or_init(|| match std::env::var_os(AGENT_VARIABLE) {
        Some(path) => Ok(path.into()),
        None => build_for_host().map_err(|e| format!("{e:#}")),
    });
    made.clone().map_err(anyhow::Error::msg)
}

fn build_for_host() -> Result<PathBuf> {
    let mut command = toolchain::cargo_command();
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command.args([
        "build",
        "--release",
        "--package",
        "agent",
        "--bin",
        "keelson",
        "--message-format",
        "json",
    ]);
    let output = command.output().context("Cannot run cargo")?;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "The agent does not build:\n{log}");
    // Every artifact is a line of JSON; the one with an executable is the one that was asked for.
    let text = String::from_utf8_lossy(&output.stdout);
    let after = text
        .lines()
        .filter_map(|line| line.split_once("\"executable\":\""))
        .next();
    let path = after.and_then(|(_, rest)| rest.split('"').next());
    path.map(PathBuf::from)
        .with_context(|| format!("Cargo names no executable:\n{log}"))
}

/// What is in the guest besides the agent: the directories it wants to find, and the tests' root file system.
fn base(arch: Arch, probe: &Path, cache: &Cache, progress: &dyn Progress) -> Result<PathBuf> {
    let busybox = rootfs::busybox(arch, cache, progress)?;
    let key = Key::of(&format!("base-{arch}"))
        .field("recipe", "3")
        .file("busybox", &busybox)?
        .file("probe", probe)?
        .finish();
    cache.entry("test-base", &key, |dir| -> Result<()> {
        for name in ["dev", "etc", "proc", "run", "sys", "tmp", "var"] {
            fs::create_dir(dir.join(name)).with_context(|| format!("Cannot create {name}"))?;
        }
        let root = dir.join(ROOTFS.trim_start_matches('/'));
        rootfs::make(&root, arch, &busybox, probe)
    })
}

/// What the roots on devices hold besides the agent: the same, and a marker.
pub fn base_of_roots(parts: &Parts, progress: &dyn Progress) -> Result<PathBuf> {
    let cache = Cache::open()?;
    let base = base(parts.arch, &parts.probe, &cache, progress)?;
    let key = Key::of(&format!("roots-{}", parts.arch))
        .field("base", base.as_os_str().as_encoded_bytes())
        .field("marker", ROOT_DISK_MARKER)
        .finish();
    cache.entry("test-base", &key, |dir| -> Result<()> {
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(base.join(".")).arg(dir);
        let copied = copy.status().context("Cannot run cp")?;
        ensure!(copied.success(), "cp ended with {copied}");
        fs::write(dir.join("etc/marker"), ROOT_DISK_MARKER).context("Cannot write the marker")
    })
}

fn own_base() -> Result<PathBuf> {
    base(arch(), &static_probe()?, &Cache::open()?, &Silent)
}

/// The tests' root file system on the host. Not to be changed: it is shared by all tests.
pub fn rootfs() -> Result<PathBuf> {
    Ok(own_base()?.join(ROOTFS.trim_start_matches('/')))
}

/// Makes a root file system like [`rootfs`] in `dir`, for a story that changes it.
pub fn new_rootfs(dir: &Path) -> Result<()> {
    let cache = Cache::open()?;
    let busybox = rootfs::busybox(arch(), &cache, &Silent)?;
    rootfs::make(dir, arch(), &busybox, &static_probe()?)
}

/// The directory of the locks that bound how many VMs run at once.
pub fn slots_dir() -> PathBuf {
    let cache = Cache::open().unwrap_or_else(|e| panic!("{e}"));
    cache.root().join("locks")
}

/// A root disk in a directory of its own, which goes when this is dropped.
#[derive(Debug)]
pub struct RootDisk {
    dir: TempDir,
}

impl RootDisk {
    /// The image file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("root.img")
    }
}

/// An ext4 disk with the agent as `/sbin/init` and all that a root needs.
pub fn root_disk() -> Result<RootDisk> {
    let dir = TempDir::new().context("Cannot create a temporary directory")?;
    let tree = dir.path().join("tree");
    let copied = Command::new("cp")
        .arg("-a")
        .args([&own_base()?, &tree])
        .status();
    let copied = copied.context("Cannot run cp")?;
    ensure!(copied.success(), "cp ended with {copied}");
    symlink("../run", tree.join("var/run"))?;
    fs::write(tree.join("etc/resolv.conf"), "")?;
    fs::write(tree.join("etc/marker"), ROOT_DISK_MARKER)?;
    fs::create_dir(tree.join("sbin"))?;
    let init = tree.join("sbin/init");
    fs::copy(static_agent()?, &init).context("Cannot copy the agent")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    vm::ext4_image(&dir.path().join("root.img"), 64, Some(&tree));
    Ok(RootDisk { dir })
}
