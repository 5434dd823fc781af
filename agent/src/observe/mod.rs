// SPDX-License-Identifier: Apache-2.0
//! What the agent tells about itself.

pub mod log;
