// SPDX-License-Identifier: Apache-2.0
//! The `oci` command: a container's whole life by the command line of an OCI runtime, in order and out of order.
#![allow(clippy::unwrap_used)] // a story that cannot go on has failed

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::artifacts;

/// A root directory of the test's own, and a bundle on the tests' root file system.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        artifacts::new_rootfs(&dir.path().join("rootfs")).unwrap();
        let place = Place { dir };
        place.configure(|_| {});
        place
    }

    /// Writes config.json: a shell that says a word, waits for the end of its input, and ends with 7.
    fn configure(&self, change: impl FnOnce(&mut Value)) {
        let namespaces =
            ["mount", "pid", "ipc", "uts", "network"].map(|kind| json!({ "type": kind }));
        let mut config = json!({
            "ociVersion": "1.2.0",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": ["sh", "-c", "echo started; cat; echo $WORD; exit 7"],
                "env": ["PATH=/bin:/usr/bin", "WORD=ended"],
                "cwd": "/",
            },
            "root": { "path": "rootfs" },
            "hostname": "here",
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "annotations": { "org.example.key": "value" },
            "linux": {
                "namespaces": namespaces,
                "resources": { "pids": { "limit": 100 } },
            },
        });
        change(&mut config);
        let path = self.dir.path().join("config.json");
        fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oci"));
        command.arg("--root").arg(self.path("state"));
        command
            .arg("--agent")
            .arg(artifacts::service_agent().unwrap());
        command
            .args(words.split_whitespace())
            .current_dir(self.dir.path());
        command
    }

    /// Runs a command to its end.
    fn oci(&self, words: &str) -> Output {
        self.command(words).stdin(Stdio::null()).output().unwrap()
    }

    /// What it prints, with success insisted on.
    fn ok(&self, words: &str) -> String {
        let output = self.oci(words);
        assert!(output.status.success(), "{words}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, words: &str, part: &str) {
        let output = self.oci(words);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{words} succeeds");
        assert!(
            text.contains(part) && text.contains("\nHint: "),
            "{words}: {text}"
        );
    }

    fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("state {id}"))).unwrap()
    }

    /// Creates a container whose output goes to `out`; its input stays open while what is returned lives.
    fn create(&self, words: &str) -> std::io::PipeWriter {
        let (input, hold) = std::io::pipe().unwrap();
        let out = fs::File::create(self.path("out")).unwrap();
        let mut command = self.command(&format!("create {words}"));
        let command = command
            .stdin(input)
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        let status = command.status().unwrap();
        let said = fs::read_to_string(self.path("out")).unwrap();
        assert!(status.success(), "{said}");
        hold
    }

    fn await_status(&self, id: &str, wanted: &str) {
        for _ in 0..1000 {
            if self.state(id)["status"] == wanted {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("{id} does not become {wanted}: {}", self.state(id));
    }

    /// Waits for something in the container's output.
    fn await_output(&self, wanted: &str) {
        for _ in 0..1000 {
            if fs::read_to_string(self.path("out"))
                .unwrap()
                .contains(wanted)
            {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!(
            "{wanted:?} does not come: {:?}",
            fs::read_to_string(self.path("out"))
        );
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("state/agent.log"));
            eprintln!("---- agent's log ----\n{}", log.unwrap_or_default());
        }
        for id in ["c1", "c2"] {
            let _ = self.oci(&format!("delete --force {id}"));
        }
    }
}

#[test]
fn a_whole_life() {
    let place = Place::new();
    let input = place.create("--pid-file pid c1");
    let state = place.state("c1");
    assert_eq!(state["status"], "created");
    assert_eq!(state["annotations"]["org.example.key"], "value");
    assert_eq!(
        state["bundle"],
        place.dir.path().canonicalize().unwrap().to_str().unwrap()
    );
    let pid = fs::read_to_string(place.path("pid")).unwrap();
    assert_eq!(state["pid"].to_string(), pid);
    // It is that process: it has the namespaces that were asked for.
    let own = fs::read_link("/proc/self/ns/uts").unwrap();
    assert_ne!(fs::read_link(format!("/proc/{pid}/ns/uts")).unwrap(), own);

    place.ok("start c1");
    place.await_output("started");
    assert_eq!(place.state("c1")["status"], "running");

    let said = place.ok("exec --env WORD=other --cwd /etc c1 sh -c pwd;hostname;echo${IFS}$WORD");
    assert_eq!(said, "/etc\nhere\nother\n");
    let code = place.oci("exec c1 sh -c exit${IFS}3").status.code();
    assert_eq!(code, Some(3));
    assert_eq!(place.ok("exec --user 5:6 c1 id -u").trim(), "5");
    let pids: Value = serde_json::from_str(&place.ok("ps --format json c1")).unwrap();
    assert!(
        pids.as_array().unwrap().contains(&state["pid"]),
        "{pids} {state}"
    );

    drop(input);
    place.await_output("ended");
    place.await_status("c1", "stopped");
    assert_eq!(place.state("c1").get("pid"), None);
    place.ok("delete c1");
    place.refused("state c1", "does not exist");
    // With the last container the agent has gone.
    assert!(!place.path("state/agent.sock").exists());
}

#[test]
fn limits_and_pauses() {
    let place = Place::new();
    let _input = place.create("c1");
    place.ok("start c1");
    place.ok("pause c1");
    assert_eq!(place.state("c1")["status"], "paused");
    place.refused("exec c1 true", "it is paused");
    place.ok("resume c1");
    place.ok("update --pids-limit 33 c1");
    let event: Value = serde_json::from_str(&place.ok("events --stats c1")).unwrap();
    assert_eq!(event["data"]["pids"]["limit"], 33, "{event}");
    place.ok("kill c1 KILL");
    place.await_status("c1", "stopped");
    place.ok("delete c1");
}

#[test]
fn commands_out_of_order_change_nothing() {
    let place = Place::new();
    for verb in ["start", "kill", "delete", "pause", "resume"] {
        place.refused(&format!("{verb} c1"), "does not exist");
    }
    let _input = place.create("c1");
    place.refused("create c1", "exists already");
    place.refused("delete c1", "it is created");
    place.refused("pause c1", "it is created");
    place.refused("create ../c1", "no container id");
    place.ok("start c1");
    place.refused("start c1", "it is running");
    place.refused("delete c1", "it is running");
    place.refused("resume c1", "it is running");
    place.refused("kill c1 NOPE", "no signal");
    place.ok("kill --all c1 KILL");
    place.await_status("c1", "stopped");
    place.refused("kill c1 KILL", "it is stopped");
    place.refused("start c1", "it is stopped");
    place.refused("exec c1 true", "it is stopped");
    place.ok("delete c1");
    place.ok("delete --force c1");
    place.configure(|config| config["process"]["user"]["umask"] = 18.into());
    place.refused("create c1", "process.user.umask cannot be carried");
    place
        .configure(|config| config["process"]["capabilities"] = json!({ "bounding": ["CAP_FLY"] }));
    place.refused("create c1", "CAP_FLY");
    assert_eq!(place.ok("list").trim(), "[]");
}

#[test]
fn two_containers_share_an_agent_and_force_ends_one() {
    let place = Place::new();
    let _one = place.create("c1");
    let agent = fs::read_to_string(place.path("state/agent.pid")).unwrap();
    let _two = place.create("c2");
    assert_eq!(
        fs::read_to_string(place.path("state/agent.pid")).unwrap(),
        agent
    );
    place.ok("start c2");
    place.ok("delete --force c2");
    assert_eq!(place.state("c1")["status"], "created");
    let list: Value = serde_json::from_str(&place.ok("list")).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
}

#[test]
fn a_seccomp_profile_bites() {
    let place = Place::new();
    place.configure(|config| {
        config["process"]["args"] = json!(["sh", "-c", "chmod 700 /etc; echo $?; grep Seccomp: /proc/self/status"]);
        config["process"]["noNewPrivileges"] = true.into();
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [{ "names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }],
        });
    });
    let _input = place.create("c1");
    place.ok("start c1");
    place.await_output("Seccomp:\t2");
    let said = fs::read_to_string(place.path("out")).unwrap();
    assert!(
        said.contains("not supported") && said.contains("\n1\n"),
        "{said}"
    );
}

#[test]
fn a_terminal_goes_over_the_console_socket() {
    let place = Place::new();
    place.configure(|config| {
        config["process"]["terminal"] = true.into();
        config["process"]["args"] = json!(["sh", "-c", "test -t 0 && echo it is one"]);
    });
    place.refused("create c1", "--console-socket");
    let listener = UnixListener::bind(place.path("console")).unwrap();
    let _input = place.create("--console-socket console c1");
    let (stream, _) = listener.accept().unwrap();
    let mut master = fs::File::from(receive(&stream));
    place.ok("start c1");
    let mut said = Vec::new();
    let mut buffer = [0; 256];
    while !String::from_utf8_lossy(&said).contains("it is one") {
        // EIO is a terminal's end.
        let read = master.read(&mut buffer).unwrap();
        said.extend_from_slice(&buffer[..read]);
    }
    place.await_status("c1", "stopped");
}

fn receive(stream: &std::os::unix::net::UnixStream) -> std::os::fd::OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0; 64];
    let mut parts = [std::io::IoSliceMut::new(&mut data)];
    recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let message = control.drain().next().expect("a descriptor comes with it");
    match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next().unwrap(),
        _ => panic!("something else than a descriptor came"),
    }
}
