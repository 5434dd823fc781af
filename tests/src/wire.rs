// SPDX-License-Identifier: Apache-2.0
//! Bare ttrpc frames, for what no well-behaved client sends: wrong lengths, even stream ids, garbage.
//!
//! Only frames and envelopes; what the messages mean is for the stories. Layout: protocol sections 1.1 and 1.2.

use std::time::Duration;

use protobuf::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use ttrpc::{Code, Request, Response};

/// The frame type of a request.
pub const REQUEST: u8 = 1;
/// The frame type of a response.
pub const RESPONSE: u8 = 2;
/// The frame type of streamed data, which no agent method uses.
pub const DATA: u8 = 3;
/// The largest payload either side may send.
pub const LARGEST: usize = 4 << 20;

const HEADER: usize = 10;

/// A frame as it came from the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The stream it belongs to.
    pub stream: u32,
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// An answer, unwrapped from its envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code; `OK` when all is well.
    pub code: Code,
    /// The status text.
    pub text: String,
    /// The encoded response message.
    pub payload: Vec<u8>,
}

/// A connection to the agent on which any bytes may be sent.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    next: u32,
}

impl Wire {
    /// Takes over a connected socket.
    pub fn new(stream: UnixStream) -> Wire {
        Wire { stream, next: 1 }
    }

    /// Sends bytes as they are.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream
            .write_all(bytes)
            .await
            .expect("the agent takes the bytes");
    }

    /// Sends a frame header that claims `length`, and no payload.
    pub async fn send_header(&mut self, length: u32, stream: u32, kind: u8) {
        self.send_bytes(&header(length, stream, kind)).await;
    }

    /// Sends a whole frame.
    pub async fn send_frame(&mut self, stream: u32, kind: u8, payload: &[u8]) {
        self.send_bytes(&frame(stream, kind, payload)).await;
    }

    /// Sends a request with an encoded message and returns its stream id.
    pub async fn send_request(&mut self, service: &str, method: &str, message: &[u8]) -> u32 {
        let stream = self.next;
        self.next += 2;
        self.send_frame(stream, REQUEST, &envelope(service, method, message))
            .await;
        stream
    }

    /// The next frame, or `None` once the agent has closed the connection.
    pub async fn receive(&mut self) -> Option<Frame> {
        let mut head = [0; HEADER];
        self.stream.read_exact(&mut head).await.ok()?;
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = usize::try_from(word(0)).expect("a u32 fits a usize");
        assert!(
            length <= LARGEST,
            "the agent sent a frame of {length} bytes"
        );
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            stream: word(4),
            kind: head[8],
            flags: head[9],
            payload,
        })
    }

    /// The answer to `stream`, which must be the next frame.
    pub async fn reply(&mut self, stream: u32) -> Reply {
        let frame = self
            .receive()
            .await
            .expect("the agent answers instead of closing the connection");
        assert_eq!(
            (frame.stream, frame.kind),
            (stream, RESPONSE),
            "the answer's stream and type"
        );
        let response =
            Response::parse_from_bytes(&frame.payload).expect("the answer's envelope decodes");
        Reply {
            code: response
                .status
                .code
                .enum_value()
                .expect("a known status code"),
            text: response.status.message.clone(),
            payload: response.payload,
        }
    }

    /// Asks and waits for the answer.
    pub async fn ask(&mut self, service: &str, method: &str, message: &[u8]) -> Reply {
        let stream = self.send_request(service, method, message).await;
        self.reply(stream).await
    }

    /// Asks with a deadline that the agent has to keep (`timeout_nano`).
    pub async fn ask_within(
        &mut self,
        limit: Duration,
        service: &str,
        method: &str,
        message: &[u8],
    ) -> Reply {
        let stream = self.next;
        self.next += 2;
        let mut request = request(service, method, message);
        request.timeout_nano = i64::try_from(limit.as_nanos()).expect("a test's deadline is short");
        self.send_frame(
            stream,
            REQUEST,
            &request.write_to_bytes().expect("an envelope encodes"),
        )
        .await;
        self.reply(stream).await
    }

    /// Asks for health, which must be answered with OK: the agent is alive and this connection is usable.
    pub async fn expect_alive(&mut self) {
        let reply = self.ask("grpc.Health", "Check", &[]).await;
        assert_eq!(reply.code, Code::OK, "Check: {}", reply.text);
    }
}

/// The bytes of a whole frame.
pub fn frame(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a test's payload is short");
    let mut bytes = header(length, stream, kind).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// An encoded request envelope.
pub fn envelope(service: &str, method: &str, message: &[u8]) -> Vec<u8> {
    request(service, method, message)
        .write_to_bytes()
        .expect("an envelope encodes")
}

fn request(service: &str, method: &str, message: &[u8]) -> Request {
    let mut request = Request::new();
    request.service = service.to_owned();
    request.method = method.to_owned();
    request.payload = message.to_vec();
    request
}

fn header(length: u32, stream: u32, kind: u8) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes[4..8].copy_from_slice(&stream.to_be_bytes());
    bytes[8] = kind;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_ten_bytes_big_endian() {
        assert_eq!(header(0x0102, 3, DATA), [0, 0, 1, 2, 0, 0, 0, 3, 3, 0]);
    }
}
