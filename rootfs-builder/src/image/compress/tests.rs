// SPDX-License-Identifier: Apache-2.0
//! What is written is what the host's programs read, and what they write is read here.

use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

fn packed(compression: Compression, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write(compression, &mut out, |body| body.write_all(content)).unwrap();
    out
}

fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    reader(bytes)?.1.read_to_end(&mut content)?;
    Ok(content)
}

/// The output of a program fed with `input`, and whether it succeeded.
fn pipe(command: &[&str], input: &[u8]) -> (bool, Vec<u8>) {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("this test needs {}: {error}", command[0]));
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // A program that has seen enough closes its input.
        scope.spawn(move || stdin.write_all(input).ok());
        child.wait_with_output().unwrap()
    });
    (output.status.success(), output.stdout)
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Contents around the sizes where lz4's blocks end: text, noise, nothing. The others have no such sizes, and take their time here.
fn contents(compression: Compression) -> Vec<Vec<u8>> {
    let text = b"070701 a line of text that comes again\n".repeat(10_000);
    let mut contents = vec![Vec::new(), b"x".to_vec(), text, noise(100_000)];
    if compression == Compression::Lz4 {
        contents.push(noise(8 << 20));
        contents.push([noise(9 << 20), vec![0; 8 << 20], noise(100)].concat());
    }
    contents
}

#[test]
fn programs_read_what_is_written() {
    let programs = [
        (Compression::Gzip, "gzip"),
        (Compression::Zstd, "zstd"),
        (Compression::Lz4, "lz4"),
    ];
    for (compression, program) in programs {
        for content in contents(compression) {
            let bytes = packed(compression, &content);
            let (good, output) = pipe(&[program, "-dc"], &bytes);
            let length = content.len();
            assert!(good && output == content, "{program}, {length} bytes");
            assert!(pipe(&[program, "-t"], &bytes).0, "{program}");
        }
    }
}

#[test]
fn what_programs_write_is_read() {
    let commands = [
        (Compression::Gzip, vec!["gzip", "-c"]),
        (Compression::Zstd, vec!["zstd", "-c"]),
        (Compression::Zstd, vec!["zstd", "-c", "--long=27"]),
        (Compression::Lz4, vec!["lz4", "-l", "-c"]),
        (Compression::Lz4, vec!["lz4", "-l", "-9", "-c"]),
    ];
    for (compression, command) in &commands {
        for content in contents(*compression) {
            let (good, bytes) = pipe(command, &content);
            assert!(good, "{command:?}");
            assert_eq!(Compression::detect(&bytes), Some(*compression));
            assert!(unpacked(&bytes).unwrap() == content, "{command:?}");
            // The kernel takes several one after another, and so do these readers.
            let twice = unpacked(&[&bytes[..], &bytes[..]].concat()).unwrap();
            assert!(
                twice == [&content[..], &content[..]].concat(),
                "{command:?}"
            );
        }
    }
}

#[test]
fn what_is_written_is_read_and_twice_the_same() {
    for compression in Compression::ALL {
        for content in contents(compression) {
            let bytes = packed(compression, &content);
            assert!(bytes == packed(compression, &content));
            assert!(unpacked(&bytes).unwrap() == content, "{compression}");
        }
    }
}

#[test]
fn the_kernel_takes_the_headers() {
    let content = noise(100);
    // RFC 1952: no name, no time.
    assert_eq!(
        packed(Compression::Gzip, &content)[..8],
        [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]
    );
    assert_eq!(
        packed(Compression::Lz4, &content)[..4],
        [0x02, 0x21, 0x4c, 0x18]
    );
    // RFC 8878: a checksum, no single segment, and a window of 2^(10 + 13) bytes.
    let zstd = packed(Compression::Zstd, &content);
    assert_eq!(zstd[4] & 0b10_0100, 0b00_0100);
    assert_eq!(zstd[5], 13 << 3);
}

#[test]
fn cut_files_are_refused() {
    let content = b"some text ".repeat(1000);
    for compression in [Compression::Gzip, Compression::Zstd, Compression::Lz4] {
        let bytes = packed(compression, &content);
        for length in [5, bytes.len() / 2, bytes.len() - 1] {
            assert!(
                unpacked(&bytes[..length]).is_err(),
                "{compression} {length}"
            );
        }
    }
}

#[test]
fn a_flipped_bit_is_found_where_the_format_has_a_checksum() {
    let content = b"some text ".repeat(1000);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut bytes = packed(compression, &content);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        assert!(unpacked(&bytes).is_err(), "{compression}");
    }
}

#[test]
fn words_name_compressions() {
    for compression in Compression::ALL {
        let json = serde_json::to_string(&compression).unwrap();
        assert_eq!(json, format!("{:?}", compression.name()));
        assert_eq!(
            serde_json::from_str::<Compression>(&json).unwrap(),
            compression
        );
        let value = compression.to_possible_value().unwrap();
        assert_eq!(value.get_name(), compression.name());
    }
}

#[test]
fn files_are_known_by_their_first_bytes() {
    assert_eq!(Compression::detect(b"070701"), Some(Compression::None));
    assert_eq!(Compression::detect(b""), None);
    assert_eq!(Compression::detect(b"\x1f"), None);
    assert_eq!(reader(&b"a"[..]).unwrap().0, None);
    assert_eq!(unpacked(b"plain").unwrap(), b"plain");
    let error = open(Path::new("/no/such/file")).err().unwrap();
    assert_eq!(error.to_string(), "Cannot read /no/such/file");
}

#[test]
fn the_writers_own_error_comes_out() {
    let error = write(Compression::Lz4, io::sink(), |_| {
        Err(io::Error::other("mine"))
    });
    assert_eq!(error.unwrap_err().to_string(), "mine");
}

proptest! {
    // Each zstd encoder of this level clears some 80 MB first.
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn pieces_of_any_size_come_back(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
        for compression in [Compression::Gzip, Compression::Zstd, Compression::Lz4] {
            let mut bytes = Vec::new();
            write(compression, &mut bytes, |body| pieces.iter().try_for_each(|piece| body.write_all(piece))).unwrap();
            prop_assert_eq!(unpacked(&bytes).unwrap(), pieces.concat());
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(
        magic in prop::sample::select(vec![&b"\x1f\x8b\x08\x00"[..], b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18", b"0707"]),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = unpacked(&[magic, &rest].concat());
        // lz4's blocks begin behind a size, which no random bytes have.
        let size = (rest.len() as u32).to_le_bytes();
        let _ = unpacked(&[&lz4::MAGIC[..], &size, &rest].concat());
    }
}
