// SPDX-License-Identifier: Apache-2.0
//! Streams over vsock connections of their own, which the host opens first and names by their ports.
//!
//! The tests' vsock device keeps a connection's port to itself, so the agent's log says it: such connections are opened one by one.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tests::container::{Exec, Stream};
use tests::story::say;
use tests::{Code, Container, Process, Vm, expect_refusal, vm_story};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// What runtime-rs configures.
const PORT: u32 = 1027;

/// How long the console may take to show a line.
const CONSOLE: Duration = Duration::from_secs(60);

/// A host that passes streams.
struct Host {
    vm: Vm,
    known: Vec<u32>,
}

impl Host {
    async fn boot() -> Host {
        let words = format!(
            "agent.passfd_listener_port={PORT} agent.log=debug loglevel=8 printk.devkmsg=on"
        );
        let vm = Vm::boot(|g| g.words(&words)).await;
        vm.create_sandbox(|_| ()).await;
        Host {
            vm,
            known: Vec::new(),
        }
    }

    /// Opens a connection; gives it with its port.
    async fn open(&mut self) -> (UnixStream, u32) {
        let machine = self.vm.machine();
        let stream = machine
            .try_connect(PORT)
            .await
            .expect("the port for streams is open");
        let port = |line: &str| -> Option<u32> {
            let (_, rest) = line.split_once("A stream from port ")?;
            rest.split_once(" waits")?.0.parse().ok()
        };
        let end = tokio::time::Instant::now() + CONSOLE;
        loop {
            // With the line that has not ended yet: it may be the last for long.
            let text = self.vm.machine().console();
            let mut ports = text.lines().filter_map(port);
            if let Some(new) = ports.find(|port| !self.known.contains(port)) {
                self.known.push(new);
                return (stream, new);
            }
            assert!(
                tokio::time::Instant::now() < end,
                "the agent does not tell the port"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn idle(&self, id: &str) -> Container {
        self.vm
            .container(id)
            .args(&["sleep", "100000"])
            .start()
            .await
    }
}

fn ports(exec: Exec, ports: [u32; 3]) -> Exec {
    exec.request(|r| [r.stdin_port, r.stdout_port, r.stderr_port] = ports)
}

async fn read_all(mut stream: UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream
        .read_to_end(&mut all)
        .await
        .expect("the stream can be read");
    all
}

#[test]
fn a_containers_streams_are_copied_to_their_ends() {
    vm_story(async {
        let mut host = Host::boot().await;
        let (stdin, stdin_port) = host.open().await;
        let (stdout, stdout_port) = host.open().await;
        let (stderr, stderr_port) = host.open().await;
        let c = host
            .vm
            .container("copy")
            .request(|r| {
                [r.stdin_port, r.stdout_port, r.stderr_port] =
                    [stdin_port, stdout_port, stderr_port]
            })
            .sh("tee /dev/stderr; exit 9")
            .start()
            .await;
        let data: Vec<u8> = (0..4_000_000u32).map(|n| ((n * 7) >> 3) as u8).collect();
        let feed = async {
            let mut stdin = stdin;
            stdin
                .write_all(&data)
                .await
                .expect("standard input is taken");
            stdin.shutdown().await.expect("the end can be sent");
            // Held until the process ends: closing is not what ends it.
            stdin
        };
        let (out, err, _stdin) = tokio::join!(read_all(stdout), read_all(stderr), feed);
        assert!(out == data, "{} bytes of {}", out.len(), data.len());
        assert_eq!(Sha256::digest(&err), Sha256::digest(&data));
        assert_eq!(c.wait().await, 9);
        c.remove().await;

        // Requests are not for such a process, and say so.
        let (_out, port) = host.open().await;
        let c = host.idle("requests").await;
        let cat = ports(c.exec(&["sleep", "100000"]), [0, port, 0])
            .start()
            .await;
        for stream in [Stream::Stdout, Stream::Stderr] {
            expect_refusal(
                cat.try_read(stream, 10).await,
                Code::FAILED_PRECONDITION,
                "ports of their own",
            );
        }
        expect_refusal(
            cat.try_write(b"x").await,
            Code::FAILED_PRECONDITION,
            "ports of their own",
        );
        c.kill_and_remove().await;
    });
}

/// In the reference the reaper waits for the copies, with everything locked.
#[test]
fn bug_an_exit_waits_for_no_copy() {
    vm_story(async {
        let mut host = Host::boot().await;
        let c = host.idle("exits").await;
        // A descendant keeps the pipe; nobody reads the connection.
        let (unread, port) = host.open().await;
        let script = "sleep 100000 & head -c 20000 /dev/zero; exit 5";
        let process = ports(c.exec(&["sh", "-c", script]), [0, port, 0])
            .start()
            .await;
        assert_eq!(process.wait().await, 5);
        host.vm.expect_alive().await;
        assert_eq!(read_all(unread).await.len(), 20_000, "and nothing is lost");

        // More than all buffers hold, unread: the process waits, the agent does not, and a kill is a kill.
        let (unread, port) = host.open().await;
        let flood = ports(c.exec(&["cat", "/dev/zero"]), [0, port, 0])
            .start()
            .await;
        host.vm.expect_alive().await;
        assert_eq!(c.sh("echo quick").await.ok(), "quick");
        flood.signal(9).await;
        assert_eq!(flood.wait().await, 137);
        drop(unread);
        c.kill_and_remove().await;
        host.vm.expect_power_off().await;
    });
}

#[test]
fn streams_end_with_whoever_goes_first() {
    vm_story(async {
        let mut host = Host::boot().await;
        let c = host.idle("ends").await;
        // The process goes: the host's input is closed, although it has not ended it.
        let (stdin, stdin_port) = host.open().await;
        let (stdout, stdout_port) = host.open().await;
        let read = ports(c.exec(&["head", "-c", "3"]), [stdin_port, stdout_port, 0])
            .start()
            .await;
        let mut stdin = stdin;
        stdin
            .write_all(b"abcdef")
            .await
            .expect("standard input is taken");
        assert_eq!(read_all(stdout).await, b"abc");
        assert_eq!(read.wait().await, 0);
        assert_eq!(read_all(stdin).await, b"");
        // The host goes: the process finds its pipe closed. It writes only then, since the tests' vsock device keeps from the guest
        // that a connection with unread output was closed.
        let (mut stdin, stdin_port) = host.open().await;
        let (stdout, stdout_port) = host.open().await;
        let late = ["sh", "-c", "head -c 1 > /dev/null; exec yes"];
        let yes = ports(c.exec(&late), [stdin_port, stdout_port, 0])
            .start()
            .await;
        drop(stdout);
        stdin
            .write_all(b"x")
            .await
            .expect("standard input is taken");
        assert_ne!(yes.wait().await, 0);
        // CloseStdin ends the input, whatever the host still has to say.
        let (stdin, stdin_port) = host.open().await;
        let (stdout, stdout_port) = host.open().await;
        let cat = ports(c.exec(&["cat"]), [stdin_port, stdout_port, 0])
            .start()
            .await;
        let mut stdin = stdin;
        stdin
            .write_all(b"words")
            .await
            .expect("standard input is taken");
        let mut words = [0; 5];
        let mut stdout = stdout;
        stdout
            .read_exact(&mut words)
            .await
            .expect("the words come back");
        cat.close_stdin().await;
        assert_eq!(read_all(stdout).await, b"");
        assert_eq!((&words, cat.wait().await), (b"words", 0));
        c.kill_and_remove().await;
    });
}

#[test]
fn a_connection_that_is_not_there_is_gone_without() {
    vm_story(async {
        let mut host = Host::boot().await;
        let c = host.idle("absent").await;
        let (stdout, port) = host.open().await;
        // The end of an input that nobody can ever write, and an output that nobody reads.
        let script = "cat; head -c 1000000 /dev/zero >&2; echo done; exit 4";
        let process = ports(c.exec(&["sh", "-c", script]), [77, port, 78])
            .start()
            .await;
        assert_eq!(read_all(stdout).await, b"done\n");
        assert_eq!(process.wait().await, 4);
        // A connection serves once.
        let again = ports(c.exec(&["sh", "-c", "exit 6"]), [0, port, 0])
            .start()
            .await;
        assert_eq!(again.wait().await, 6);
        c.kill_and_remove().await;
        // Without the word there is no port, and leaving the streams out silently would lose them.
        let shared = Vm::shared().await;
        let c = shared
            .container("passfd-none")
            .args(&["sleep", "100000"])
            .start()
            .await;
        let refused = ports(c.exec(&["true"]), [1, 2, 3])
            .try_start()
            .await
            .map(drop);
        expect_refusal(refused, Code::UNIMPLEMENTED, "agent.passfd_listener_port");
        c.kill_and_remove().await;
    });
}

#[test]
fn a_terminal_is_copied_both_ways() {
    vm_story(async {
        let mut host = Host::boot().await;
        let c = host.idle("terminal").await;
        let (mut stdin, stdin_port) = host.open().await;
        let (stdout, stdout_port) = host.open().await;
        let shell: Process = ports(c.exec(&["sh"]).tty(), [stdin_port, stdout_port, 0])
            .start()
            .await;
        shell.resize(33, 99).await;
        stdin
            .write_all(b"stty size; tty; exit $((3 + 4))\n")
            .await
            .expect("standard input is taken");
        let seen = String::from_utf8_lossy(&read_all(stdout).await).into_owned();
        assert!(
            seen.contains("33 99\r\n") && seen.contains("/dev/"),
            "{seen:?}"
        );
        assert_eq!(shell.wait().await, 7);
        assert_eq!(read_all(stdin).await, b"");
        c.kill_and_remove().await;
    });
}

/// Says how fast streams are both ways; asserts that all of them arrives.
#[test]
fn streams_of_16_mib_arrive_by_requests_and_by_a_connection() {
    vm_story(async {
        let mut host = Host::boot().await;
        let c = host.idle("fast").await;
        let flood = ["head", "-c", "16777216", "/dev/zero"];
        let start = std::time::Instant::now();
        let asked = c.exec(&flood).start().await;
        assert_eq!(asked.read_to_end(Stream::Stdout).await.len(), 16 << 20);
        let by_requests = start.elapsed();
        assert_eq!(asked.wait().await, 0);

        let (stdout, port) = host.open().await;
        let start = std::time::Instant::now();
        let passed = ports(c.exec(&flood), [0, port, 0]).start().await;
        assert_eq!(read_all(stdout).await.len(), 16 << 20);
        let by_connection = start.elapsed();
        assert_eq!(passed.wait().await, 0);
        let ratio = by_requests.as_secs_f64() / by_connection.as_secs_f64();
        say(&format!(
            "ReadStdout {by_requests:?}, a connection {by_connection:?}: {ratio:.2} times as fast"
        ));
        c.kill_and_remove().await;
    });
}
