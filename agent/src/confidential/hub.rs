// SPDX-License-Identifier: Apache-2.0
//! The client of the confidential-data-hub. Each call has a connection of its
//! own: the hub may come up late and start anew, and one whose call was given
//! up sees that its caller has gone. Trusts no reply: bounded, and checked by
//! whoever asked for the effect.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use protobuf::Message;
use protocols::confidential_data_hub::{
    GetResourceRequest, GetResourceResponse, ImagePullRequest, SecureMountRequest,
    UnsealSecretInput, UnsealSecretOutput,
};
use tokio::net::UnixStream;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;

use crate::config::Config;

/// Where the hub listens.
const SOCKET: &str = "/run/confidential-containers/cdh.sock";

/// The most that a secret or a resource may be in the clear: what Kubernetes
/// lets a secret be.
pub(super) const LARGEST_SECRET: usize = 1 << 20;

/// The most of a hub's own words that is passed on.
const LONGEST_TEXT: usize = 1000;

/// How much longer than its caller waits the hub may be at it.
const GRACE: Duration = Duration::from_secs(5);

/// Why the hub did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// There is none, or it does not listen.
    #[error("No confidential-data-hub at '{socket}' for {method}")]
    Absent {
        /// Its socket.
        socket: PathBuf,
        /// What it was to do.
        method: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("The confidential-data-hub did not answer {method} within {seconds} s")]
    Late {
        /// What it was to do.
        method: &'static str,
        /// How long it had.
        seconds: u64,
    },
    /// It said no.
    #[error("The confidential-data-hub refused {method}: {text}")]
    Refused {
        /// What it was to do.
        method: &'static str,
        /// Its reason.
        text: String,
    },
    /// The connection broke before the answer.
    #[error("The confidential-data-hub broke off {method}: {text}")]
    Lost {
        /// What it was to do.
        method: &'static str,
        /// What happened.
        text: String,
    },
    /// An answer that cannot be used.
    #[error("The confidential-data-hub's answer to {method} is {what}")]
    Answer {
        /// What it was to do.
        method: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// A method of the hub: service and name on the wire.
struct Method(&'static str, &'static str);

const PULL_IMAGE: Method = Method("api.ImagePullService", "PullImage");
const SECURE_MOUNT: Method = Method("api.SecureMountService", "SecureMount");
const UNSEAL_SECRET: Method = Method("api.SealedSecretService", "UnsealSecret");
const GET_RESOURCE: Method = Method("api.GetResourceService", "GetResource");

/// The hub of this guest. Cheap to clone; connects when it is asked for something.
#[derive(Debug, Clone)]
pub struct Hub(Arc<Settings>);

#[derive(Debug)]
struct Settings {
    socket: PathBuf,
    patience: Duration,
    pull_patience: Duration,
    integrity: bool,
}

/// A call under way.
pub struct Asked {
    answer: Pin<Box<dyn Future<Output = Result<Vec<u8>, HubError>> + Send>>,
    method: &'static str,
    limit: Duration,
}

impl Asked {
    /// The answer, if it comes in time. If it does not the call goes on, for
    /// who waits for its [`end`](Self::end); dropping it is the hub's sign that
    /// nobody does.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn in_time(&mut self) -> Result<Vec<u8>, HubError> {
        let answer = tokio::time::timeout(self.limit, &mut self.answer).await;
        answer.unwrap_or(Err(HubError::Late {
            method: self.method,
            seconds: self.limit.as_secs(),
        }))
    }

    /// Waits until the hub has nothing to do with it any more, which is soon: it
    /// was told how long it has.
    pub async fn end(self) {
        if self.answer.await.is_err() {
            // Given up rather than done: what is under way comes to its end.
            tokio::time::sleep(GRACE).await;
        }
    }
}

impl Hub {
    /// The hub at its usual place.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self::at(Path::new(SOCKET), config)
    }

    /// As [`Hub::new`], with its socket elsewhere.
    #[must_use]
    pub fn at(socket: &Path, config: &Config) -> Self {
        Self(Arc::new(Settings {
            socket: socket.to_owned(),
            patience: config.cdh_api_timeout,
            pull_patience: config.image_pull_timeout,
            integrity: config.secure_storage_integrity,
        }))
    }

    /// Whether there is a socket to ask at.
    #[must_use]
    pub fn is_present(&self) -> bool {
        std::fs::metadata(&self.0.socket).is_ok_and(|file| file.file_type().is_socket())
    }

    /// Has an image pulled, verified and mounted on `rootfs` below `bundle`.
    /// Whatever the answer is, something may be mounted.
    pub fn pull_image(&self, image: &str, bundle: &Path) -> Asked {
        let request = ImagePullRequest {
            image_url: image.to_owned(),
            bundle_path: bundle.to_string_lossy().into_owned(),
            ..Default::default()
        };
        self.ask(&PULL_IMAGE, &request, self.0.pull_patience)
    }

    /// Has a disk encrypted with a key that nobody keeps, a file system made on
    /// it with these options of `mkfs.ext4`, and that mounted on `place`.
    /// Whatever the answer is, something may be mounted.
    pub fn mount_encrypted(&self, (major, minor): (u32, u32), mkfs: &str, place: &str) -> Asked {
        let integrity = self.0.integrity.to_string();
        let options = [
            ("deviceId", format!("{major}:{minor}")),
            ("sourceType", "empty".to_owned()),
            ("targetType", "fileSystem".to_owned()),
            ("filesystemType", "ext4".to_owned()),
            ("mkfsOpts", mkfs.to_owned()),
            ("encryptionType", "luks2".to_owned()),
            ("dataIntegrity", integrity),
        ];
        let options = options.map(|(key, value)| (key.to_owned(), value));
        let request = SecureMountRequest {
            volume_type: "block-device".to_owned(),
            options: HashMap::from(options),
            mount_point: place.to_owned(),
            ..Default::default()
        };
        self.ask(&SECURE_MOUNT, &request, self.0.patience)
    }

    /// Opens a sealed secret; at most [`LARGEST_SECRET`] bytes.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn unseal(&self, sealed: &[u8]) -> Result<Vec<u8>, HubError> {
        let request = UnsealSecretInput {
            secret: sealed.to_owned(),
            ..Default::default()
        };
        let answer = self.call(&UNSEAL_SECRET, &request, self.0.patience);
        let answer: UnsealSecretOutput = answer.await?;
        bounded(UNSEAL_SECRET, answer.plaintext)
    }

    /// Fetches a resource from the key broker; at most [`LARGEST_SECRET`] bytes.
    /// `path` is `repository/type/tag`.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn resource(&self, path: &str) -> Result<Vec<u8>, HubError> {
        let request = GetResourceRequest {
            ResourcePath: format!("kbs://{path}"),
            ..Default::default()
        };
        let answer = self.call(&GET_RESOURCE, &request, self.0.patience);
        let answer: GetResourceResponse = answer.await?;
        bounded(GET_RESOURCE, answer.Resource)
    }

    async fn call<T: Message>(
        &self,
        method: &'static Method,
        request: &impl Message,
        limit: Duration,
    ) -> Result<T, HubError> {
        let answer = self.ask(method, request, limit).in_time().await?;
        T::parse_from_bytes(&answer).map_err(|_| HubError::Answer {
            method: method.1,
            what: "not understood",
        })
    }

    fn ask(&self, method: &'static Method, request: &impl Message, limit: Duration) -> Asked {
        let (hub, payload) = (self.clone(), request.write_to_bytes());
        Asked {
            answer: Box::pin(async move { hub.answer(method, payload, limit).await }),
            method: method.1,
            limit,
        }
    }

    async fn answer(
        &self,
        &Method(service, method): &Method,
        payload: protobuf::Result<Vec<u8>>,
        limit: Duration,
    ) -> Result<Vec<u8>, HubError> {
        let lost = |text| HubError::Lost { method, text };
        let payload = payload.map_err(|error| lost(error.to_string()))?;
        let stream = UnixStream::connect(&self.0.socket).await;
        let stream = stream.map_err(|source| HubError::Absent {
            socket: self.0.socket.clone(),
            method,
            source,
        })?;
        let request = ttrpc::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            // What the hub is told is for the hub: its caller has gone by then.
            timeout_nano: i64::try_from((limit + GRACE).as_nanos()).unwrap_or(i64::MAX),
            payload,
            ..Default::default()
        };
        // Frames of more than 4 MiB are an error of ttrpc's.
        let answer = Client::new(Socket::new(stream)).request(request).await;
        match answer {
            Ok(answer) => Ok(answer.payload),
            Err(ttrpc::Error::RpcStatus(status)) => Err(HubError::Refused {
                method,
                text: status.message.chars().take(LONGEST_TEXT).collect(),
            }),
            Err(error) => Err(lost(error.to_string())),
        }
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self::new(&Config::default())
    }
}

fn bounded(method: Method, bytes: Vec<u8>) -> Result<Vec<u8>, HubError> {
    if bytes.len() > LARGEST_SECRET {
        return Err(HubError::Answer {
            method: method.1,
            what: "larger than 1 MiB",
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    fn hub(dir: &tempfile::TempDir, patience: Duration) -> Hub {
        let config = Config {
            cdh_api_timeout: patience,
            ..Config::default()
        };
        Hub::at(&dir.path().join("cdh.sock"), &config)
    }

    /// A hub that answers each request with these bytes, frame and all, and hangs up.
    fn answering(dir: &tempfile::TempDir, bytes: Vec<u8>) {
        let listener = UnixListener::bind(dir.path().join("cdh.sock")).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 10];
                stream.read_exact(&mut head).await.unwrap();
                let mut rest = vec![0; u32::from_be_bytes(head[..4].try_into().unwrap()) as usize];
                stream.read_exact(&mut rest).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
            }
        });
    }

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
        frame.extend(1u32.to_be_bytes());
        frame.extend([2, 0]);
        frame.extend(payload);
        frame
    }

    fn answer(payload: &impl Message) -> Vec<u8> {
        let response = ttrpc::Response {
            payload: payload.write_to_bytes().unwrap(),
            ..Default::default()
        };
        frame(&response.write_to_bytes().unwrap())
    }

    #[tokio::test]
    async fn bug_an_absent_hub_is_an_error_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(&dir, Duration::from_secs(5));
        assert!(!hub.is_present());
        let error = hub.pull_image("x", Path::new("/run/b")).in_time().await;
        let error = error.unwrap_err();
        assert!(matches!(error, HubError::Absent { .. }));
        assert!(error.to_string().contains("cdh.sock' for PullImage"));
        // A file in its place is no hub either, nor a socket that nobody listens on.
        std::fs::write(dir.path().join("cdh.sock"), "").unwrap();
        assert!(!hub.is_present());
        std::fs::remove_file(dir.path().join("cdh.sock")).unwrap();
        drop(UnixListener::bind(dir.path().join("cdh.sock")).unwrap());
        let error = hub.unseal(b"sealed.x").await.unwrap_err();
        assert!(matches!(error, HubError::Absent { .. }));
    }

    #[tokio::test]
    async fn it_is_found_when_it_comes_up_and_again_after_it_hung_up() {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(&dir, Duration::from_secs(30));
        assert!(hub.resource("a/b/c").await.is_err());
        let plaintext = b"open".to_vec();
        answering(
            &dir,
            answer(&UnsealSecretOutput {
                plaintext: plaintext.clone(),
                ..Default::default()
            }),
        );
        assert!(hub.is_present());
        for _ in 0..3 {
            assert_eq!(hub.unseal(b"sealed.x").await.unwrap(), plaintext);
        }
    }

    #[tokio::test]
    async fn replies_are_bounded_and_understood_or_refused() {
        let huge = UnsealSecretOutput {
            plaintext: vec![0; LARGEST_SECRET + 1],
            ..Default::default()
        };
        let mut too_long = frame(b"");
        too_long[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        let nonsense = ttrpc::Response {
            payload: vec![0xff; 7],
            ..Default::default()
        };
        let refusal = ttrpc::Response {
            status: protobuf::MessageField::some(ttrpc::get_status(
                ttrpc::Code::NOT_FOUND,
                "no ".repeat(5000),
            )),
            ..Default::default()
        };
        for (bytes, part) in [
            (answer(&huge), "larger than 1 MiB"),
            (too_long, "broke off"),
            (frame(&[0xff; 9]), "broke off"),
            (frame(&nonsense.write_to_bytes().unwrap()), "not understood"),
            (frame(&refusal.write_to_bytes().unwrap()), "refused"),
            (Vec::new(), "broke off"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            answering(&dir, bytes);
            let error = hub(&dir, Duration::from_secs(30)).unseal(b"s").await;
            let text = error.unwrap_err().to_string();
            assert!(text.contains(part) && text.len() < 1200, "{part}: {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_has_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let _silent = UnixListener::bind(dir.path().join("cdh.sock")).unwrap();
        let error = hub(&dir, Duration::from_secs(50)).unseal(b"s").await;
        assert!(matches!(error, Err(HubError::Late { seconds: 50, .. })));
    }
}
