// SPDX-License-Identifier: Apache-2.0
//! A confidential-data-hub for stories without a VM: speaks the real protocol, holds no keys, and misbehaves when it is told to.
//!
//! It runs in the test process and does what it does to the agent's namespaces from outside. What images and secrets are called
//! decides what becomes of them: see [`images`] and [`secrets`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use protocols::confidential_data_hub::*;
use protocols::confidential_data_hub_ttrpc::*;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::sync::{Notify, watch};
use ttrpc::r#async::{Server, TtrpcContext};
use ttrpc::{Code, get_status};

use crate::service::{Inside, Service};

/// References of images. Any other is the tests' own root file system.
pub mod images {
    /// The hub says that it has mounted this one, and has not.
    pub const IMAGINARY: &str = "example.org/imaginary";
    /// Refused.
    pub const FORBIDDEN: &str = "example.org/forbidden";
    /// Mounted, then refused.
    pub const BROKEN: &str = "example.org/broken";
    /// Takes until [`super::Hub::open`].
    pub const SLOW: &str = "example.org/slow";
}

/// Sealed secrets. Any other `sealed.X` is `open X`.
pub mod secrets {
    /// Refused.
    pub const FORBIDDEN: &str = "sealed.forbidden";
    /// No text.
    pub const BINARY: &str = "sealed.binary";
    /// Takes until [`super::Hub::open`].
    pub const SLOW: &str = "sealed.slow";
}

/// A disk that the hub mounts and then complains about.
pub const BROKEN_DISK: &str = "254:13";

/// A disk that takes until [`Hub::open`].
pub const SLOW_DISK: &str = "254:14";

/// What a hub was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// PullImage.
    Pull {
        /// The reference.
        image: String,
        /// The bundle.
        bundle: String,
    },
    /// SecureMount.
    Mount {
        /// Its type.
        volume_type: String,
        /// Its options.
        options: BTreeMap<String, String>,
        /// Mount flags.
        flags: Vec<String>,
        /// Where.
        mount_point: String,
    },
    /// UnsealSecret.
    Unseal(String),
}

/// A hub that the agent of a service can ask.
pub struct Hub {
    server: Server,
    state: Arc<State>,
}

struct State {
    inside: Inside,
    calls: Mutex<Vec<Call>>,
    called: Notify,
    open: watch::Sender<bool>,
    mounted: watch::Sender<usize>,
}

impl Hub {
    /// Starts one, in the place of one that was there before.
    pub async fn start(service: &Service) -> Hub {
        let state = Arc::new(State {
            inside: service.inside(),
            calls: Mutex::default(),
            called: Notify::new(),
            open: watch::Sender::new(false),
            mounted: watch::Sender::new(0),
        });
        let socket = service.hub_socket();
        let _ = std::fs::remove_file(&socket);
        let mut server = Server::new()
            .bind(&format!("unix://{}", socket.display()))
            .expect("the hub's socket can be bound")
            .register_service(create_image_pull_service(state.clone()))
            .register_service(create_secure_mount_service(state.clone()))
            .register_service(create_sealed_secret_service(state.clone()));
        server.start().await.expect("the hub starts");
        Hub { server, state }
    }

    /// One that takes the first bytes of a call and dies, each time.
    pub fn dying(service: &Service) -> tokio::task::JoinHandle<()> {
        let socket = service.hub_socket();
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(socket).expect("the hub's socket can be bound");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 16]).await;
            }
        })
    }

    /// All calls so far, in order; the next time only later ones.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.state.calls())
    }

    /// Waits until there has been a call since [`Hub::calls`].
    pub async fn called(&self) {
        loop {
            let called = self.state.called.notified();
            if !self.state.calls().is_empty() {
                return;
            }
            called.await;
        }
    }

    /// Lets what is slow go on, from now on.
    pub fn open(&self) {
        self.state.open.send_replace(true);
    }

    /// Waits until it has mounted as much since its start.
    pub async fn mounted(&self, number: usize) {
        let mut mounted = self.state.mounted.subscribe();
        let seen = mounted.wait_for(|mounts| *mounts >= number).await;
        drop(seen.expect("the hub is there"));
    }

    /// Ends the hub, its connections too.
    pub async fn stop(mut self) {
        self.state.open.send_replace(true);
        self.server.shutdown().await.expect("the hub stops");
    }
}

impl State {
    fn calls(&self) -> std::sync::MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, call: Call) {
        self.calls().push(call);
        self.called.notify_waiters();
    }

    async fn opened(&self) {
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }

    async fn sh(&self, script: String) {
        let inside = self.inside;
        let done = tokio::task::spawn_blocking(move || inside.sh(&script)).await;
        done.expect("the hub can mount");
    }
}

fn refusal<T>(text: &str) -> ttrpc::Result<T> {
    let status = get_status(Code::PERMISSION_DENIED, text);
    Err(ttrpc::Error::RpcStatus(status))
}

#[async_trait]
impl ImagePullService for State {
    async fn pull_image(
        &self,
        _: &TtrpcContext,
        request: ImagePullRequest,
    ) -> ttrpc::Result<ImagePullResponse> {
        let (image, bundle) = (request.image_url, request.bundle_path);
        self.note(Call::Pull {
            image: image.clone(),
            bundle: bundle.clone(),
        });
        match &*image {
            images::IMAGINARY => return Ok(ImagePullResponse::new()),
            images::FORBIDDEN => return refusal("the image is not signed"),
            images::SLOW => self.opened().await,
            _ => {}
        }
        self.sh(format!(
            "mkdir -p {bundle}/rootfs; mount --bind /run/image {bundle}/rootfs; echo '{{}}' > {bundle}/config.json"
        ))
        .await;
        self.mounted.send_modify(|mounts| *mounts += 1);
        match &*image {
            images::BROKEN => refusal("a layer is broken"),
            _ => Ok(ImagePullResponse::new()),
        }
    }
}

#[async_trait]
impl SecureMountService for State {
    async fn secure_mount(
        &self,
        _: &TtrpcContext,
        request: SecureMountRequest,
    ) -> ttrpc::Result<SecureMountResponse> {
        let disk = request.options.get("deviceId").cloned().unwrap_or_default();
        let place = request.mount_point.clone();
        self.note(Call::Mount {
            volume_type: request.volume_type,
            options: request.options.into_iter().collect(),
            flags: request.flags,
            mount_point: request.mount_point,
        });
        if disk == SLOW_DISK {
            self.opened().await;
        }
        self.sh(format!(
            "mkdir -p {place}; mount -t tmpfs -o mode=700 encrypted {place}"
        ))
        .await;
        self.mounted.send_modify(|mounts| *mounts += 1);
        match &*disk {
            BROKEN_DISK => refusal("the disk is broken"),
            _ => Ok(SecureMountResponse::new()),
        }
    }
}

#[async_trait]
impl SealedSecretService for State {
    async fn unseal_secret(
        &self,
        _: &TtrpcContext,
        request: UnsealSecretInput,
    ) -> ttrpc::Result<UnsealSecretOutput> {
        let sealed = String::from_utf8_lossy(&request.secret).into_owned();
        self.note(Call::Unseal(sealed.clone()));
        let plaintext = match &*sealed {
            secrets::FORBIDDEN => return refusal("the guest is not attested"),
            secrets::BINARY => vec![0xff, 0],
            secrets::SLOW => {
                self.opened().await;
                b"late".to_vec()
            }
            _ => sealed.replacen("sealed.", "open ", 1).into_bytes(),
        };
        Ok(UnsealSecretOutput {
            plaintext,
            ..Default::default()
        })
    }
}
