// SPDX-License-Identifier: Apache-2.0
//! Why an image cannot be read.

use std::io;
use std::path::PathBuf;

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file operation failed.
    #[error("Cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is of no format that is known here.
    #[error("{path} is of no known image format", path = path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The image uses something that is not read here.
    #[error("{path} has {feature}, which cannot be read here", path = path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it uses.
        feature: String,
    },
    /// The image breaks the rules of its format.
    #[error("{path} is broken at byte {offset}: {what}", path = path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Where: a byte of the file, or of what is unpacked from it if it is compressed.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// Compressed data cannot be unpacked.
    #[error("{path}: cannot unpack what begins at byte {offset}", path = path.display())]
    Unpack {
        /// The file.
        path: PathBuf,
        /// Where the compressed data begins.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The image claims more than any guest image holds.
    #[error("{path} holds more than {limit}: it is no guest image, or made to exhaust its reader", path = path.display())]
    TooMuch {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: &'static str,
    },
    /// The disk around the file system is broken.
    #[error(transparent)]
    Disk(#[from] crate::image::disk::DiskError),
    /// A document of an OCI layout is none.
    #[error("{path} is no document of an OCI image", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}
