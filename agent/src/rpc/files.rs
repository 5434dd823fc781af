// SPDX-License-Identifier: Apache-2.0
//! CopyFile.

use std::path::Path;
use std::sync::Arc;

use protocols::agent::CopyFileRequest;
use protocols::empty::Empty;
use ttrpc::Code;

use super::status::{Coded, failure};
use crate::files::{CopyPlan, CopyRoot, SHARED_ROOT};

/// On the blocking pool: the destination may be a shared file system.
pub async fn copy(root: &Arc<CopyRoot>, request: CopyFileRequest) -> ttrpc::Result<Empty> {
    let plan = CopyPlan::from_wire(request, Path::new(SHARED_ROOT)).map_err(Coded::status)?;
    let root = root.clone();
    let copied = crate::pool::at_host_pace(move || root.copy(plan)).await;
    copied
        .map_err(|_| failure(Code::INTERNAL, "CopyFile ended early"))?
        .map_err(Coded::status)?;
    Ok(Empty::new())
}
