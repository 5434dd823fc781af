// SPDX-License-Identifier: Apache-2.0
//! A small client of QEMU's machine protocol (QMP; QEMU `docs/interop/qmp-spec`): one command at a time, events kept in order.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// The longest message accepted; QEMU's longest replies are some hundred kilobytes.
const MESSAGE_LIMIT: usize = 16 << 20;
/// How long QEMU may take to answer a command.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// Events kept for a reader that never asks for them.
const KEEP_EVENTS: usize = 1000;

/// What can go wrong between us and QEMU's monitor.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket failed.
    #[error("QMP: the connection failed")]
    Io(#[from] std::io::Error),
    /// QEMU closed the connection, as it does when it ends.
    #[error("QMP: QEMU closed the connection")]
    Closed,
    /// What came is not a QMP message.
    #[error("QMP: not a message: {text}")]
    Malformed {
        /// Its beginning.
        text: String,
    },
    /// QEMU refused the command.
    #[error("QMP: {command} failed: {class}: {text}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class, mostly `GenericError`.
        class: String,
        /// QEMU's description.
        text: String,
    },
    /// No answer, or no such event, in time.
    #[error("QMP: no {what} within {after:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
    },
}

/// An asynchronous message from QEMU, such as `DEVICE_DELETED`.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Its data; null if it has none.
    pub data: Value,
}

/// One connection to QEMU's monitor.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    events: VecDeque<Event>,
    next_id: u64,
    /// The message being read. Kept here so that a wait that is given up loses no bytes.
    partial: Vec<u8>,
}

impl Qmp {
    /// Connects to QEMU's monitor socket and leaves the negotiation mode.
    pub async fn connect(socket: &Path) -> Result<Qmp, QmpError> {
        let (reader, writer) = UnixStream::connect(socket).await?.into_split();
        let reader = BufReader::new(reader);
        let mut qmp = Qmp {
            reader,
            writer,
            events: VecDeque::new(),
            next_id: 0,
            partial: Vec::new(),
        };
        let greeting = qmp
            .limited(REPLY_TIMEOUT, "greeting", async |qmp| qmp.message().await)
            .await?;
        if greeting.get("QMP").is_none() {
            return Err(malformed(greeting.to_string().as_bytes()));
        }
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// Executes a command; `arguments` is an object, or null for none. Returns what QEMU calls `return`.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.next_id += 1;
        let id = self.next_id;
        let mut request = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let mut bytes = request.to_string().into_bytes();
        bytes.push(b'\n');
        self.writer.write_all(&bytes).await?;
        let what = format!("answer to {command}");
        self.limited(REPLY_TIMEOUT, &what, async |qmp| {
            qmp.reply(id, command).await
        })
        .await
    }

    /// Waits for an event named `name`, among those that have come already too, and takes it. Other events are kept.
    pub async fn event(&mut self, name: &str, timeout: Duration) -> Result<Event, QmpError> {
        self.limited(timeout, &format!("event {name}"), async |qmp| {
            loop {
                if let Some(index) = qmp.events.iter().position(|e| e.name == name) {
                    // The index was just found.
                    return qmp.events.remove(index).ok_or(QmpError::Closed);
                }
                let message = qmp.message().await?;
                qmp.keep_event(&message);
            }
        })
        .await
    }

    async fn limited<T>(
        &mut self,
        after: Duration,
        what: &str,
        work: impl AsyncFnOnce(&mut Qmp) -> Result<T, QmpError>,
    ) -> Result<T, QmpError> {
        let late = |_| QmpError::Timeout {
            what: what.to_owned(),
            after,
        };
        tokio::time::timeout(after, work(self))
            .await
            .map_err(late)?
    }

    async fn reply(&mut self, id: u64, command: &str) -> Result<Value, QmpError> {
        loop {
            let mut message = self.message().await?;
            if message.get("id").and_then(Value::as_u64) != Some(id) {
                // An event, or the late answer to a command that was given up.
                self.keep_event(&message);
                continue;
            }
            if let Some(error) = message.get("error") {
                let word = |key| {
                    error
                        .get(key)
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                        .to_owned()
                };
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    class: word("class"),
                    text: word("desc"),
                });
            }
            return Ok(message
                .get_mut("return")
                .map(Value::take)
                .unwrap_or_default());
        }
    }

    fn keep_event(&mut self, message: &Value) {
        let Some(name) = message.get("event").and_then(Value::as_str) else {
            return;
        };
        if self.events.len() == KEEP_EVENTS {
            self.events.pop_front();
        }
        let data = message.get("data").cloned().unwrap_or_default();
        self.events.push_back(Event {
            name: name.to_owned(),
            data,
        });
    }

    /// The next message. Safe to give up: a part that has been read is kept for the next call.
    async fn message(&mut self) -> Result<Value, QmpError> {
        loop {
            let chunk = self.reader.fill_buf().await?;
            if chunk.is_empty() {
                return Err(QmpError::Closed);
            }
            let end = chunk.iter().position(|b| *b == b'\n');
            let take = end.map_or(chunk.len(), |at| at + 1);
            self.partial.extend_from_slice(&chunk[..take]);
            self.reader.consume(take);
            if end.is_some() {
                let bytes = std::mem::take(&mut self.partial);
                return serde_json::from_slice(&bytes).map_err(|_| malformed(&bytes));
            }
            if self.partial.len() > MESSAGE_LIMIT {
                return Err(malformed(&self.partial));
            }
        }
    }
}

fn malformed(bytes: &[u8]) -> QmpError {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    QmpError::Malformed { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixListener;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";
    const READY: &str = "{\"return\": {}, \"id\": 1}\r\n";

    /// A monitor that greets and then answers the n-th request with the n-th of `replies`.
    fn monitor(dir: &Path, replies: &'static [&'static str]) -> std::path::PathBuf {
        let path = dir.join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(GREETING.as_bytes()).await.unwrap();
            let mut buffer = [0; 4096];
            for reply in replies {
                let _ = stream.read(&mut buffer).await.unwrap();
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        path
    }

    #[tokio::test]
    async fn answers_events_and_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = monitor(
            dir.path(),
            &[
                READY,
                "{\"event\": \"RESUME\"}\r\n{\"return\": {\"running\": true}, \"id\": 2}\r\n",
                "{\"id\": 3, \"error\": {\"class\": \"GenericError\", \"desc\": \"no such device\"}}\r\n",
                "{\"id\": 4, \"return\": {}}\r\n{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"d0\"}}\r\n",
            ],
        );
        let mut qmp = Qmp::connect(&path).await.unwrap();
        assert_eq!(
            qmp.execute("query-status", Value::Null).await.unwrap()["running"],
            true
        );
        let error = qmp
            .execute("device_del", json!({ "id": "d0" }))
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "QMP: device_del failed: GenericError: no such device"
        );
        qmp.execute("device_del", json!({ "id": "d0" }))
            .await
            .unwrap();
        let event = qmp
            .event("DEVICE_DELETED", Duration::from_secs(5))
            .await
            .unwrap();
        assert_eq!(event.data["device"], "d0");
        assert_eq!(
            qmp.event("RESUME", Duration::from_secs(5))
                .await
                .unwrap()
                .data,
            Value::Null
        );
    }

    #[tokio::test]
    async fn an_ended_qemu_and_nonsense_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = monitor(dir.path(), &[READY]);
        let mut qmp = Qmp::connect(&path).await.unwrap();
        let error = qmp.execute("quit", Value::Null).await.unwrap_err();
        assert!(
            matches!(error, QmpError::Closed | QmpError::Io(_)),
            "{error}"
        );
        std::fs::remove_file(&path).unwrap();
        let path = monitor(dir.path(), &["nonsense\n"]);
        let error = Qmp::connect(&path).await.unwrap_err();
        assert_eq!(error.to_string(), "QMP: not a message: nonsense\n");
    }
}
