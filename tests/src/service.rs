// SPDX-License-Identifier: Apache-2.0
//! The agent as a service on a unix socket, without a VM: for everything that is about the wire and not about a kernel.
//!
//! It runs in private mount, process, network, ipc, uts and cgroup namespaces with a `/run` of its own, so that it may do as root
//! what it does in a guest without touching the host. Dropping the [`Service`] ends the namespaces and all that runs in them.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::net::UnixStream;

use crate::agent::{Agent, Connect};
use crate::artifacts;

/// Where the tests' root file system lies inside the namespaces.
const ROOTFS: &str = "/run/image";

/// The socket of the confidential-data-hub, if a story has one.
const HUB: &str = "cdh.sock";

/// How long a service may take from its start to the first accepted connection.
const START: Duration = Duration::from_secs(20);

/// How long the namespaces may take to end.
const END: Duration = Duration::from_secs(5);

/// Runs as PID 1 of the new namespace and stays there, so that the agent is not PID 1 and knows itself to be a service.
///
/// Its standard input is the story's hold on it: when that ends, however the test process went, so does all of this, and the cgroups
/// that the containers left on the host are removed. (A background job's input is /dev/null unless it is told otherwise.)
const SCRIPT: &str = r#"
set -e
agent=$1 rootfs=$2 scope=$3 hub=$4 words=$5
mount -t tmpfs -o mode=755 tmpfs /run
cp -a "$rootfs" /run/image
mkdir /run/confidential-containers
ln -s "$hub" /run/confidential-containers/cdh.sock
if [ -n "$words" ]; then
    echo "$words" > /run/words
    mount --bind /run/words /proc/cmdline
fi
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null || mount -t tmpfs tmpfs /sys/fs/cgroup
exec 3<&0
"$agent" 3<&- &
pid=$!
(cat <&3 >/dev/null; kill -9 $pid) &
status=0
wait $pid || status=$?
echo "the agent ended with status $status"
kill -9 -1 || true
for try in 1 2 3 4 5 6 7 8 9; do
    find "/sys/fs/cgroup/$scope" -depth -type d -exec rmdir {} + 2>/dev/null && break
    sleep 0.05
done
"#;

/// An agent that runs as a service. Derefs to the [`Agent`] to talk to.
pub struct Service {
    agent: Agent,
    inner: Inner,
}

struct Inner {
    child: Mutex<Child>,
    dir: TempDir,
}

impl Deref for Service {
    type Target = Agent;

    fn deref(&self) -> &Agent {
        &self.agent
    }
}

impl Service {
    /// Starts an agent of the story's own.
    pub async fn start() -> Service {
        Service::start_with("").await
    }

    /// Starts one that finds these words on the kernel's command line.
    pub async fn start_with(words: &str) -> Service {
        Service::try_start(words)
            .await
            .unwrap_or_else(|e| panic!("The agent does not start as a service: {e:#}"))
    }

    async fn try_start(words: &str) -> Result<Service> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let dir = tempfile::tempdir().context("Cannot create a temporary directory")?;
        // Cgroups are the host's, whatever the namespace shows: each service has a part of its own.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let scope = format!("keelson-tests-{}-{number}", std::process::id());
        let agent = artifacts::service_agent()?;
        let child = spawn(dir.path(), &agent, &artifacts::rootfs()?, &scope, words)?;
        let inner = Inner {
            child: Mutex::new(child),
            dir,
        };
        let socket = inner.socket();
        inner.wait_for_socket().await?;
        let connect: Arc<Connect> = Arc::new(move || {
            let socket = socket.clone();
            Box::pin(async move {
                UnixStream::connect(&socket)
                    .await
                    .unwrap_or_else(|e| panic!("The agent's socket: {e}"))
            })
        });
        let agent = Agent::reach(connect, ROOTFS, &scope).await;
        Ok(Service { agent, inner })
    }

    /// The way into the agent's namespaces.
    pub fn inside(&self) -> Inside {
        let own = self.inner.child().id();
        let all = std::fs::read_dir("/proc").expect("/proc is there");
        let pid = all
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .find(|&pid| parent_of(pid) == Some(own))
            .expect("the namespaces have a PID 1");
        Inside { pid }
    }

    /// Where a hub has to listen that the agent is to find.
    pub fn hub_socket(&self) -> PathBuf {
        self.inner.dir.path().join(HUB)
    }

    /// What the agent has written so far, log and all.
    pub fn log(&self) -> String {
        self.inner.log()
    }

    /// A shell script that will run as root in the agent's network and mount namespaces.
    pub fn script(&self, script: &str) -> Command {
        let target = self.inner.child().id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &target]);
        if !is_root().expect("/proc/self is there") {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(["--net", "--mount", "sh", "-e", "-c", script]);
        command
    }

    /// Runs a shell script in the agent's namespaces and gives what it prints; insists that it succeeds.
    pub fn sh(&self, script: &str) -> String {
        let output = self.script(script).output();
        let output = output.expect("nsenter runs (package util-linux)");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (said, complaint) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{script}: {complaint}{said}");
        said
    }

    /// Kills the agent's launcher, as the OOM killer might, and waits until it is gone; insists that there was one.
    pub async fn kill_launcher(&self) {
        let own = self.inner.child().id();
        let launcher = std::fs::read_dir("/proc")
            .expect("/proc is there")
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .find(|&pid| name_of(pid).as_deref() == Some(LAUNCHER) && descends_from(pid, own))
            .expect("the agent has a launcher");
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(launcher as i32).expect("no process is 0"),
            rustix::process::Signal::KILL,
        )
        .expect("the launcher can be killed");
        let end = Instant::now() + END;
        while Path::new(&format!("/proc/{launcher}")).exists() {
            assert!(Instant::now() < end, "the agent does not reap its launcher");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Insists that the agent ends by itself, as it does after DestroySandbox.
    pub async fn expect_end(&self) {
        let end = Instant::now() + START;
        while self
            .inner
            .child()
            .try_wait()
            .expect("the child can be waited for")
            .is_none()
        {
            assert!(Instant::now() < end, "The agent is still running");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What the launcher calls itself.
const LAUNCHER: &str = "keelson-launch";

fn name_of(pid: u32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim().to_owned())
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

fn descends_from(pid: u32, ancestor: u32) -> bool {
    std::iter::successors(Some(pid), |&pid| parent_of(pid).filter(|&pid| pid != 0))
        .any(|pid| pid == ancestor)
}

/// The agent's namespaces, to look at what it has made and to make what it is to find.
#[derive(Clone, Copy, Debug)]
pub struct Inside {
    pid: u32,
}

impl Inside {
    /// Runs a shell script in the mount and process namespaces, insists that it ends well, and gives its output. Blocks.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let mut command = Command::new("nsenter");
        if !is_root().expect("/proc is there") {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(["--mount", "--pid", "--target", &self.pid.to_string()]);
        let output = command.args(["sh", "-ec", script]).output();
        let output = output.expect("nsenter (package util-linux) runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{script}\nends with {}:\n{text}{complaints}",
            output.status
        );
        text.trim_end().to_owned()
    }
}

impl Inner {
    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_for_socket(&self) -> Result<()> {
        let end = Instant::now() + START;
        loop {
            if UnixStream::connect(self.socket()).await.is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child().try_wait()? {
                bail!("It ended with {status}:\n{}", self.log());
            }
            if Instant::now() > end {
                bail!(
                    "No one listens on {} yet:\n{}",
                    self.socket().display(),
                    self.log()
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "---- agent's log ----\n{}---- end of the log ----",
                self.log()
            );
        }
        let mut child = self.child();
        drop(child.stdin.take());
        let end = Instant::now() + END;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        // For when the script is stuck; its death takes PID 1 of the namespace with it (`--kill-child`), and that all the rest.
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn spawn(dir: &Path, agent: &Path, rootfs: &Path, scope: &str, words: &str) -> Result<Child> {
    let log = File::create(dir.join("log")).context("Cannot create the log file")?;
    let mut command = Command::new("unshare");
    if !is_root()? {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--net",
            "--ipc",
            "--uts",
            "--cgroup",
        ])
        .args([
            "--mount-proc",
            "--propagation",
            "private",
            "sh",
            "-c",
            SCRIPT,
            "sh",
        ])
        .args([agent, rootfs, Path::new(scope), &dir.join(HUB)])
        .arg(words)
        .env(
            "KATA_AGENT_SERVER_ADDR",
            format!("unix://{}", dir.join("agent.sock").display()),
        )
        .env("KATA_AGENT_LOG_LEVEL", "debug")
        .stdin(Stdio::piped())
        .stdout(log.try_clone().context("Cannot share the log file")?)
        .stderr(log);
    command
        .spawn()
        .context("Cannot run unshare (package util-linux)")
}

fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self")
        .context("Cannot look at /proc/self")?
        .uid()
        == 0)
}
