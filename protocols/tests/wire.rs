// SPDX-License-Identifier: Apache-2.0

//! Messages as bytes, worked out by hand from the field numbers and the protobuf encoding.
//! A tag is `number << 3 | wire type`: 0 varint, 2 length-delimited.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use protobuf::{Message, MessageField};
use protocols::{agent, confidential_data_hub, csi, empty, health, oci, types};
use std::collections::HashMap;

/// -1 as a varint: negative numbers take ten bytes.
const MINUS_ONE: [u8; 10] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];

/// The message encodes to these bytes, and these bytes decode to the message.
#[track_caller]
fn golden<M: Message + PartialEq + std::fmt::Debug>(message: &M, bytes: &[u8]) {
    assert_eq!(message.write_to_bytes().unwrap(), bytes);
    assert_eq!(&M::parse_from_bytes(bytes).unwrap(), message);
}

fn concat(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn empty_is_no_bytes() {
    golden(&empty::Empty::new(), &[]);
    golden(&agent::GetOOMEventRequest::new(), &[]);
}

#[test]
fn reseed_random_dev_starts_at_field_2() {
    let message = agent::ReseedRandomDevRequest {
        data: vec![1, 2, 3],
        ..Default::default()
    };
    golden(&message, &[0x12, 3, 1, 2, 3]);
}

#[test]
fn fs_group_starts_at_field_2() {
    let message = agent::FSGroup {
        group_id: 1000,
        group_change_policy: types::FSGroupChangePolicy::OnRootMismatch.into(),
        ..Default::default()
    };
    golden(&message, &[0x10, 0xe8, 0x07, 0x18, 1]);
}

#[test]
fn create_container() {
    let root = oci::Root {
        Path: "/r".to_owned(),
        ..Default::default()
    };
    let spec = oci::Spec {
        Root: MessageField::some(root),
        ..Default::default()
    };
    let message = agent::CreateContainerRequest {
        container_id: "c".to_owned(),
        OCI: MessageField::some(spec),
        sandbox_pidns: true,
        stdin_port: 1027,
        stderr_port: 1,
        ..Default::default()
    };
    let bytes = [
        0x0a, 1, b'c', // 1 container_id
        0x32, 6, 0x1a, 4, 0x0a, 2, b'/', b'r', // 6 OCI { 3 Root { 1 Path } }
        0x38, 1, // 7 sandbox_pidns
        0x48, 0x83, 0x08, // 9 stdin_port
        0x58, 1, // 11 stderr_port
    ];
    golden(&message, &bytes);
}

#[test]
fn process_in_camel_case() {
    let message = oci::Process {
        Terminal: true,
        Args: vec!["sh".to_owned()],
        NoNewPrivileges: true,
        OOMScoreAdj: -998,
        ..Default::default()
    };
    let bytes = concat(&[
        &[0x08, 1, 0x22, 2, b's', b'h', 0x48, 1],
        &[
            0x58, 0x9a, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
        ],
    ]);
    golden(&message, &bytes);
}

#[test]
fn errno_ret_is_present_even_if_zero() {
    let mut message = oci::LinuxSyscall {
        Names: vec!["chmod".to_owned()],
        Action: "SCMP_ACT_ERRNO".to_owned(),
        ..Default::default()
    };
    let without = concat(&[&[0x0a, 5], b"chmod", &[0x12, 14], b"SCMP_ACT_ERRNO"]);
    golden(&message, &without);
    message.ErrnoRet = Some(oci::linux_syscall::ErrnoRet::Errnoret(0));
    golden(&message, &concat(&[&without, &[0x18, 0]]));
}

#[test]
fn mem_agent_settings_are_present_even_if_zero() {
    golden(&agent::MemAgentMemcgConfig::new(), &[]);
    let message = agent::MemAgentMemcgConfig {
        disabled: Some(false),
        swappiness_max: Some(0),
        eviction_run_aging_count_min: Some(3),
        ..Default::default()
    };
    golden(&message, &[0x08, 0, 0x18, 0, 0x38, 3]);
    let message = agent::MemAgentCompactConfig {
        compact_sec_max: Some(-1),
        compact_force_times: Some(u64::MAX),
        ..Default::default()
    };
    golden(
        &message,
        &concat(&[&[0x28], &MINUS_ONE, &[0x40], &MINUS_ONE]),
    );
}

#[test]
fn numbers_in_lists_are_packed_and_both_forms_are_read() {
    let message = agent::AddSwapRequest {
        PCIPath: vec![1, 300],
        ..Default::default()
    };
    golden(&message, &[0x0a, 3, 1, 0xac, 0x02]);
    let unpacked = agent::AddSwapRequest::parse_from_bytes(&[0x08, 1, 0x08, 0xac, 0x02]).unwrap();
    assert_eq!(unpacked, message);
    let message = agent::MemHotplugByProbeRequest {
        memHotplugProbeAddr: vec![1 << 32],
        ..Default::default()
    };
    golden(&message, &[0x0a, 5, 0x80, 0x80, 0x80, 0x80, 0x10]);
}

#[test]
fn device_rule_with_wildcard() {
    let message = oci::LinuxDeviceCgroup {
        Allow: true,
        Type: "c".to_owned(),
        Major: 136,
        Minor: -1,
        Access: "rwm".to_owned(),
        ..Default::default()
    };
    let bytes = concat(&[
        &[0x08, 1, 0x12, 1, b'c', 0x18, 0x88, 0x01, 0x20],
        &MINUS_ONE,
        &[0x2a, 3, b'r', b'w', b'm'],
    ]);
    golden(&message, &bytes);
}

#[test]
fn copy_file_has_signed_ids() {
    let message = agent::CopyFileRequest {
        path: "/f".to_owned(),
        file_size: 2_097_152,
        file_mode: 0o100_644,
        uid: -1,
        offset: 1_048_576,
        data: b"x".to_vec(),
        ..Default::default()
    };
    let bytes = concat(&[
        &[
            0x0a, 2, b'/', b'f', 0x10, 0x80, 0x80, 0x80, 0x01, 0x18, 0xa4, 0x83, 0x02,
        ],
        &[0x28],
        &MINUS_ONE,
        &[0x38, 0x80, 0x80, 0x40, 0x42, 1, b'x'],
    ]);
    golden(&message, &bytes);
}

#[test]
fn maps_are_entries_of_key_and_value() {
    let message = agent::MemoryStats {
        stats: HashMap::from([("a".to_owned(), 5)]),
        ..Default::default()
    };
    golden(&message, &[0x32, 5, 0x0a, 1, b'a', 0x10, 5]);
    let message = oci::Spec {
        Annotations: HashMap::from([("k".to_owned(), "v".to_owned())]),
        ..Default::default()
    };
    golden(&message, &[0x3a, 6, 0x0a, 1, b'k', 0x12, 1, b'v']);
}

#[test]
fn network_messages() {
    let address = types::IPAddress {
        family: types::IPFamily::v6.into(),
        address: "::1".to_owned(),
        mask: "128".to_owned(),
        ..Default::default()
    };
    let bytes = concat(&[&[0x08, 1, 0x12, 3], b"::1", &[0x1a, 3], b"128"]);
    golden(&address, &bytes);
    let interface = types::Interface {
        mtu: 1500,
        type_: "t".to_owned(),
        raw_flags: 0x80,
        ..Default::default()
    };
    golden(
        &interface,
        &[0x20, 0xdc, 0x0b, 0x3a, 1, b't', 0x40, 0x80, 0x01],
    );
    let routes = agent::Routes {
        Routes: vec![types::Route {
            scope: 253,
            mtu: 9000,
            ..Default::default()
        }],
        ..Default::default()
    };
    golden(&routes, &[0x0a, 6, 0x28, 0xfd, 0x01, 0x40, 0xa8, 0x46]);
}

#[test]
fn answers() {
    let message = agent::WaitProcessResponse {
        status: 137,
        ..Default::default()
    };
    golden(&message, &[0x08, 0x89, 0x01]);
    let message = health::HealthCheckResponse {
        status: health::health_check_response::ServingStatus::SERVING.into(),
        ..Default::default()
    };
    golden(&message, &[0x08, 1]);
    let message = health::VersionCheckResponse {
        agent_version: "4.1.0".to_owned(),
        ..Default::default()
    };
    golden(&message, &concat(&[&[0x12, 5], b"4.1.0"]));
    let message = csi::VolumeUsage {
        used: 1,
        unit: csi::volume_usage::Unit::INODES.into(),
        ..Default::default()
    };
    golden(&message, &[0x18, 1, 0x20, 2]);
    let message = confidential_data_hub::GetResourceResponse {
        Resource: vec![0],
        ..Default::default()
    };
    golden(&message, &[0x0a, 1, 0]);
}

#[test]
fn unknown_fields_and_enum_values_do_not_fail() {
    let message = agent::StartContainerRequest::parse_from_bytes(&[0x0a, 1, b'c', 0xa0, 0x06, 1]);
    assert_eq!(message.unwrap().container_id, "c");
    let message = types::IPAddress::parse_from_bytes(&[0x08, 7]).unwrap();
    assert_eq!(message.family.enum_value(), Err(7));
}

#[test]
fn damaged_messages_are_errors() {
    for bytes in [
        &[0x0a][..],                     // a tag without its value
        &[0x0a, 5, b'c'],                // cut short
        &[0x0a, 1, 0xff],                // not UTF-8
        &[0x0a, 0xff, 0xff, 0xff, 0x7f], // a length beyond the message
    ] {
        assert!(agent::StartContainerRequest::parse_from_bytes(bytes).is_err());
    }
}
