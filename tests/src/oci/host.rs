// SPDX-License-Identifier: Apache-2.0
//! The agent of a root directory: started on demand, ended with the last container. Knows processes and sockets, not containers.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use protocols::agent::{CreateSandboxRequest, DestroySandboxRequest};
use tests::agent::Rpc;
use tokio::net::UnixStream;

use crate::cli::{Options, advice};
use crate::record::{self, Record};

/// How long the agent may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// The agent's mounts are its own, and what the caller mounts later arrives. Its bundles are below /run/kata-containers.
const SCRIPT: &str = r#"
mkdir -p /run/kata-containers /sys/fs/cgroup
mount -t tmpfs -o mode=700 keelson-oci /run/kata-containers || exit 1
grep -q ' /sys/fs/cgroup' /proc/self/mounts || mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
exec "$1"
"#;

pub struct Host<'a> {
    options: &'a Options,
    lock: Option<File>,
}

impl<'a> Host<'a> {
    /// The root directory, to look at.
    pub fn new(options: &'a Options) -> Host<'a> {
        Host {
            options,
            lock: None,
        }
    }

    /// The root directory, for one command at a time.
    pub fn lock(options: &'a Options) -> Result<Host<'a>> {
        let root = &options.root;
        let path = root.join("lock");
        let lock = fs::create_dir_all(root)
            .and_then(|()| File::create(&path))
            .and_then(|file| file.lock().map(|()| file));
        let lock = lock.with_context(|| format!("Cannot lock {}", path.display()))?;
        Ok(Host {
            options,
            lock: Some(lock),
        })
    }

    pub fn root(&self) -> &Path {
        &self.options.root
    }

    fn socket(&self) -> PathBuf {
        self.root().join("agent.sock")
    }

    /// The agent's pid.
    pub fn pid(&self) -> Option<u32> {
        let text = fs::read_to_string(self.root().join("agent.pid")).ok()?;
        text.trim().parse().ok().filter(|&pid| record::alive(pid))
    }

    /// A connection to the agent that runs.
    pub async fn connect(&self) -> Result<Rpc> {
        let stream = UnixStream::connect(self.socket()).await.map_err(|error| {
            let text = format!("No agent at {}: {error}", self.socket().display());
            advice(text, "create a container first")
        })?;
        Ok(Rpc::over(stream))
    }

    /// A connection to the agent, which is started if it must be. Containers share the ipc and uts namespaces of their sandbox, as in a
    /// pod: the first one names it.
    pub async fn connect_or_start(&self, hostname: &str) -> Result<Rpc> {
        if self.pid().is_some() {
            return self.connect().await;
        }
        let _ = fs::remove_file(self.socket());
        let pid = self.spawn()?;
        fs::write(self.root().join("agent.pid"), pid.to_string())?;
        let end = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).await.is_err() {
            let log = || fs::read_to_string(self.root().join("agent.log")).unwrap_or_default();
            if !record::alive(pid) {
                bail!("The agent ended:\n{}", log());
            }
            if Instant::now() > end {
                bail!("The agent does not listen:\n{}", log());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let rpc = self.connect().await?;
        let sandbox = CreateSandboxRequest {
            sandbox_id: "oci".to_owned(),
            hostname: hostname.to_owned(),
            ..Default::default()
        };
        rpc.create_sandbox(&sandbox)
            .await
            .map_err(refused("CreateSandbox"))?;
        Ok(rpc)
    }

    fn spawn(&self) -> Result<u32> {
        let agent = match &self.options.agent {
            Some(path) => path.clone(),
            None => tests::artifacts::service_agent()?,
        };
        let log = File::create(self.root().join("agent.log"))?;
        let root = self.root().canonicalize()?;
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "slave",
                "sh",
                "-c",
                SCRIPT,
                "sh",
            ])
            .arg(agent)
            .env(
                "KATA_AGENT_SERVER_ADDR",
                format!("unix://{}", root.join("agent.sock").display()),
            )
            .env("KATA_AGENT_LOG_LEVEL", "debug")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        // Nothing forks on the way: the agent's pid is this one.
        let child = command
            .spawn()
            .context("Cannot run unshare (package util-linux)")?;
        Ok(child.id())
    }

    /// The processes that the agent has started, its launcher among them.
    pub fn children(&self) -> BTreeSet<u32> {
        let Some(agent) = self.pid() else {
            return BTreeSet::new();
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers.filter(|&pid| parent(pid) == Some(agent)).collect()
    }

    /// Ends the agent if there is no container left. Needs the lock.
    pub async fn end_if_idle(&self, rpc: &Rpc) -> Result<()> {
        let Some(pid) = self.pid().filter(|_| self.lock.is_some()) else {
            return Ok(());
        };
        if !Record::all(self.root()).is_empty() {
            return Ok(());
        }
        rpc.destroy_sandbox(&DestroySandboxRequest::new())
            .await
            .map_err(refused("DestroySandbox"))?;
        let end = Instant::now() + PATIENCE;
        while record::alive(pid) {
            if Instant::now() > end {
                bail!("The agent {pid} does not end");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let _ = fs::remove_file(self.socket());
        Ok(())
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    fields.nth(1)?.parse().ok()
}

/// Names the call that the agent refused.
pub fn refused(call: &'static str) -> impl FnOnce(tests::Refusal) -> anyhow::Error {
    move |refusal| anyhow!("The agent refuses {call}: {refusal}")
}
