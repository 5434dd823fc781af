// SPDX-License-Identifier: Apache-2.0

//! The stubs: names as hosts call them, and a call that goes there and back through chunked streams.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use async_trait::async_trait;
use protocols::{
    agent::{WriteStreamRequest, WriteStreamResponse},
    agent_ttrpc::{AgentService, AgentServiceClient, create_agent_service},
    chunked::ChunkedStream,
    confidential_data_hub_ttrpc as cdh,
    health_ttrpc::{Health, create_health},
};
use std::{collections::HashMap, sync::Arc};
use ttrpc::r#async::{
    Client, Server, Service, TtrpcContext,
    transport::{Listener, Socket},
};

struct Agent;

#[async_trait]
impl AgentService for Agent {
    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: WriteStreamRequest,
    ) -> ttrpc::Result<WriteStreamResponse> {
        Ok(WriteStreamResponse {
            len: request.data.iter().map(|byte| u32::from(*byte)).sum(),
            ..Default::default()
        })
    }
}

#[async_trait]
impl Health for Agent {}
#[async_trait]
impl cdh::SealedSecretService for Agent {}
#[async_trait]
impl cdh::SecureMountService for Agent {}
#[async_trait]
impl cdh::ImagePullService for Agent {}
#[async_trait]
impl cdh::GetResourceService for Agent {}

/// `service/method` for every method, sorted.
fn names(services: HashMap<String, Service>) -> Vec<String> {
    let mut names: Vec<String> = services
        .iter()
        .flat_map(|(service, methods)| {
            let methods = methods.methods.keys();
            methods.map(move |method| format!("{service}/{method}"))
        })
        .collect();
    names.sort();
    names
}

#[test]
fn agent_methods_are_registered_under_their_names() {
    let stated = include_str!("contract.txt")
        .split_once("service AgentService\n")
        .unwrap()
        .1;
    let mut stated: Vec<String> = stated
        .lines()
        .take_while(|line| line.starts_with("    "))
        .map(|line| {
            format!(
                "grpc.AgentService/{}",
                line.split_whitespace().next().unwrap()
            )
        })
        .collect();
    stated.sort();
    assert_eq!(stated.len(), 42);
    assert_eq!(names(create_agent_service(Arc::new(Agent))), stated);
}

#[test]
fn other_methods_are_registered_under_their_names() {
    let agent = Arc::new(Agent);
    assert_eq!(
        names(create_health(agent.clone())),
        ["grpc.Health/Check", "grpc.Health/Version"]
    );
    let secret = cdh::create_sealed_secret_service(agent.clone());
    assert_eq!(names(secret), ["api.SealedSecretService/UnsealSecret"]);
    let mount = cdh::create_secure_mount_service(agent.clone());
    assert_eq!(names(mount), ["api.SecureMountService/SecureMount"]);
    let pull = cdh::create_image_pull_service(agent.clone());
    assert_eq!(names(pull), ["api.ImagePullService/PullImage"]);
    let resource = cdh::create_get_resource_service(agent);
    assert_eq!(names(resource), ["api.GetResourceService/GetResource"]);
}

#[tokio::test]
async fn a_large_call_goes_through_chunked_streams() {
    let (near, far) = tokio::io::duplex(4096);
    let accepted = futures::stream::iter([Ok::<_, std::io::Error>(ChunkedStream::new(far))]);
    let accepted = futures::StreamExt::chain(accepted, futures::stream::pending());
    let mut server = Server::new()
        .add_listener(Listener::new(accepted))
        .register_service(create_agent_service(Arc::new(Agent)));
    server.start().await.unwrap();

    let client = AgentServiceClient::new(Client::new(Socket::new(ChunkedStream::new(near))));
    let request = WriteStreamRequest {
        data: vec![1; 1 << 20],
        ..Default::default()
    };
    let context = ttrpc::context::with_timeout(60_000_000_000);
    let response = client.write_stdin(context.clone(), &request).await.unwrap();
    assert_eq!(response.len, 1 << 20);

    let unset = client.get_metrics(context, &Default::default()).await;
    assert!(matches!(unset, Err(ttrpc::Error::RpcStatus(_))));
}
