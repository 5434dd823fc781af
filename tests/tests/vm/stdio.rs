// SPDX-License-Identifier: Apache-2.0
//! Standard streams and terminals: nothing lost, nothing added, and an end.

use sha2::{Digest, Sha256};
use tests::container::Stream;
use tests::{Vm, vm_story};

const SIGINT_EXIT: i32 = 130;

fn digest(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Vec<u8> {
    let mut hash = Sha256::new();
    for piece in pieces {
        hash.update(piece.as_ref());
    }
    hash.finalize().to_vec()
}

/// The process ends as soon as its last byte is in the pipe, long before the host has read it.
#[test]
fn output_of_64_mib_followed_by_an_exit_loses_nothing() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("io-64")
            .args(&["sleep", "100000"])
            .start()
            .await;
        let fill = "head -c 4194304 /dev/urandom > /dev/shm/block && cat /dev/shm/block";
        let block = c.exec(&["sh", "-c", fill]).start().await;
        let block_bytes = block.read_to_end(Stream::Stdout).await;
        assert_eq!((block.wait().await, block_bytes.len()), (0, 4 << 20));
        let process = c
            .exec(&[
                "sh",
                "-c",
                "for i in $(seq 16); do cat /dev/shm/block; done; exit 16",
            ])
            .start()
            .await;
        let (mut hash, mut length) = (Sha256::new(), 0);
        loop {
            let piece = process.read(Stream::Stdout).await;
            if piece.is_empty() {
                break;
            }
            length += piece.len();
            hash.update(&piece);
        }
        assert_eq!(length, 64 << 20);
        assert_eq!(
            hash.finalize().to_vec(),
            digest(std::iter::repeat_n(&block_bytes, 16))
        );
        assert_eq!(process.wait().await, 16);
        c.kill_and_remove().await;
    });
}

#[test]
fn short_outputs_of_every_size_class_are_whole() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("io-sizes")
            .args(&["sleep", "100000"])
            .start()
            .await;
        for size in [0, 1, 4095, 4096, 16_384, 65_535, 65_536, 65_537, 300_000] {
            let script = format!("head -c {size} /dev/zero; head -c {size} /dev/zero >&2");
            let output = c.exec(&["sh", "-c", &script]).start().await.output().await;
            assert_eq!((output.stdout.len(), output.stderr.len()), (size, size));
        }
        c.kill_and_remove().await;
    });
}

#[test]
fn a_container_of_its_own_loses_nothing_either() {
    vm_story(async {
        let vm = Vm::shared().await;
        let output = vm.sh("io-init", "seq 1 100000").await;
        let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
        assert_eq!(output.code, 0);
        assert!(
            output.stdout == expected,
            "{} bytes instead of {}",
            output.stdout.len(),
            expected.len()
        );
    });
}

#[test]
fn close_stdin_is_end_of_file_after_all_that_was_written() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm.container("io-close").args(&["sha256sum"]).start().await;
        let piece: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let feed = async {
            for _ in 0..20 {
                c.write(&piece).await;
            }
            c.close_stdin().await;
            c.close_stdin().await;
        };
        let (output, ()) = tokio::join!(c.output(), feed);
        let expected: String = digest(std::iter::repeat_n(&piece, 20))
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(output.ok(), format!("{expected}  -"));
        c.remove().await;
    });
}

#[test]
fn an_empty_write_is_end_of_file() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm.container("io-empty").args(&["cat"]).start().await;
        c.write(b"some words").await;
        c.write(b"").await;
        let output = c.output().await;
        assert_eq!((output.code, output.stdout.as_str()), (0, "some words"));
        c.remove().await;
    });
}

#[test]
fn writing_after_the_end_is_refused() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("io-after")
            .args(&["sleep", "100000"])
            .start()
            .await;
        let cat = c.exec(&["cat"]).start().await;
        cat.close_stdin().await;
        let refusal = cat
            .try_write(b"late")
            .await
            .expect_err("standard input is closed");
        assert!(refusal.code.is_some(), "{refusal}");
        assert_eq!(cat.output().await.ok(), "");
        c.kill_and_remove().await;
    });
}

/// The pipe is full and nobody reads: the writer waits, everything else goes on.
#[test]
fn a_reader_that_does_not_read_holds_up_nobody_else() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("io-stuck")
            .args(&["sleep", "100000"])
            .start()
            .await;
        let writer = tokio::spawn({
            let c = c.clone();
            async move { c.try_write(&vec![0; 1 << 20]).await }
        });
        for _ in 0..20 {
            vm.expect_alive().await;
        }
        assert_eq!(c.sh("echo quick").await.ok(), "quick");
        c.kill_all().await;
        assert!(writer.await.expect("the write is answered").is_err());
        assert_eq!(c.wait().await, 137);
        c.remove().await;
    });
}

#[test]
fn a_terminal_has_the_size_it_is_given() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("io-tty")
            .sh("read x; stty size; tty; read y; exit 3")
            .tty()
            .start()
            .await;
        c.resize(40, 132).await;
        c.write(b"go\n").await;
        let seen = c.expect("/dev/").await;
        assert!(seen.contains("40 132\r\n"), "{seen:?}");
        c.resize(25, 80).await;
        c.write(b"end\n").await;
        assert_eq!(c.wait().await, 3);
        c.remove().await;
    });
}

#[test]
fn an_exec_may_have_a_terminal() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("io-exec-tty")
            .args(&["sleep", "100000"])
            .start()
            .await;
        let shell = c.exec(&["sh"]).tty().start().await;
        shell.resize(33, 99).await;
        shell
            .write(
                b"stty size; test -t 0 && test -t 1 && test -t 2 && echo all $((1 + 2)) are ttys\n",
            )
            .await;
        let seen = shell.expect("all 3 are ttys\r\n").await;
        assert!(seen.contains("33 99"), "{seen:?}");
        shell.write(b"exit 8\n").await;
        assert_eq!(shell.wait().await, 8);
        c.kill_and_remove().await;
    });
}

#[test]
fn ctrl_c_on_a_terminal_interrupts() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("io-intr")
            .args(&["sleep", "100000"])
            .start()
            .await;
        let process = c
            .exec(&["sh", "-c", "echo ready; exec sleep 100000"])
            .tty()
            .start()
            .await;
        process.expect("ready").await;
        process.write(b"\x03").await;
        assert_eq!(process.wait().await, SIGINT_EXIT);
        c.kill_and_remove().await;
    });
}

#[test]
fn a_terminal_of_many_lines_is_whole() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("io-lines")
            .sh("seq 1 20000")
            .tty()
            .start()
            .await;
        let mut text = Vec::new();
        // The end of a terminal may be an empty answer or a refusal; hosts take both for the end.
        while let Ok(piece) = c.try_read(Stream::Stdout, 32 << 10).await {
            if piece.is_empty() {
                break;
            }
            text.extend_from_slice(&piece);
        }
        let expected: String = (1..=20_000).map(|n| format!("{n}\r\n")).collect();
        assert!(
            text == expected.as_bytes(),
            "{} bytes instead of {}",
            text.len(),
            expected.len()
        );
        assert_eq!(c.wait().await, 0);
        c.remove().await;
    });
}
