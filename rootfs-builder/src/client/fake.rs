// SPDX-License-Identifier: Apache-2.0
//! An agent for tests, served in this process: it has one process, which copies its input to its output as `cat` does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use protocols::agent_ttrpc::{AgentService, create_agent_service};
use protocols::empty::Empty;
use protocols::health_ttrpc::{Health, create_health};
use protocols::{agent, health};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use ttrpc::r#async::{Server, TtrpcContext};

use super::Agent;

/// The container whose process has closed its input.
pub const DEAF: &str = "deaf";
/// The container nobody knows.
pub const GONE: &str = "gone";

#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    closed: bool,
}

/// What the fake process has seen.
#[derive(Debug, Default)]
pub struct Fake {
    pipe: Mutex<Pipe>,
    news: Notify,
    /// Exec ids and signals, in order.
    pub signals: Mutex<Vec<(String, u32)>>,
    /// Window sizes, rows and columns, in order.
    pub sizes: Mutex<Vec<(u32, u32)>>,
}

fn refuse<T>(code: ttrpc::Code, text: &str) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, text)))
}

#[async_trait]
impl Health for Fake {
    async fn check(
        &self,
        _: &TtrpcContext,
        _: health::CheckRequest,
    ) -> ttrpc::Result<health::HealthCheckResponse> {
        Ok(health::HealthCheckResponse::new())
    }
}

#[async_trait]
impl AgentService for Fake {
    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: agent::WriteStreamRequest,
    ) -> ttrpc::Result<agent::WriteStreamResponse> {
        if request.container_id == DEAF {
            return refuse(ttrpc::Code::INTERNAL, "Cannot get writer");
        }
        let len = u32::try_from(request.data.len()).unwrap();
        self.pipe.lock().unwrap().bytes.extend(request.data);
        self.news.notify_one();
        Ok(agent::WriteStreamResponse {
            len,
            ..Default::default()
        })
    }

    async fn close_stdin(
        &self,
        _: &TtrpcContext,
        _: agent::CloseStdinRequest,
    ) -> ttrpc::Result<Empty> {
        self.pipe.lock().unwrap().closed = true;
        self.news.notify_one();
        Ok(Empty::new())
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        request: agent::ReadStreamRequest,
    ) -> ttrpc::Result<agent::ReadStreamResponse> {
        if request.container_id == GONE {
            return refuse(ttrpc::Code::NOT_FOUND, "Container gone is unknown");
        }
        loop {
            {
                let mut pipe = self.pipe.lock().unwrap();
                // Odd pieces: nobody may rely on getting all that was asked for.
                let take = pipe.bytes.len().min(request.len as usize).min(1021);
                if take > 0 || pipe.closed {
                    let data = pipe.bytes.drain(..take).collect();
                    return Ok(agent::ReadStreamResponse {
                        data,
                        ..Default::default()
                    });
                }
            }
            self.news.notified().await;
        }
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: agent::SignalProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let seen = (request.exec_id, request.signal);
        self.signals.lock().unwrap().push(seen);
        Ok(Empty::new())
    }

    async fn tty_win_resize(
        &self,
        _: &TtrpcContext,
        request: agent::TtyWinResizeRequest,
    ) -> ttrpc::Result<Empty> {
        let size = (request.row, request.column);
        self.sizes.lock().unwrap().push(size);
        Ok(Empty::new())
    }
}

/// A fake agent and a client connected to it. The server ends when it is dropped.
pub async fn serve() -> (Server, Agent, Arc<Fake>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let fake = Arc::new(Fake::default());
    let mut server = Server::new()
        .bind(&format!("unix://{}", path.display()))
        .unwrap()
        .register_service(create_agent_service(fake.clone()))
        .register_service(create_health(fake.clone()));
    server.start().await.unwrap();
    let agent = Agent::new(UnixStream::connect(&path).await.unwrap());
    (server, agent, fake)
}
