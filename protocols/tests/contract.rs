// SPDX-License-Identifier: Apache-2.0

//! Holds `proto/*.proto` to the contract with the hosts, which `contract.txt` states a second time.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use protobuf::descriptor::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    field_descriptor_proto::{Label, Type},
};
use std::collections::BTreeSet;

const FILES: [&str; 6] = [
    "agent.proto",
    "confidential_data_hub.proto",
    "csi.proto",
    "health.proto",
    "oci.proto",
    "types.proto",
];

/// One line for each thing declared, with the things around it: `file / message NAME / number name type label`.
type Lines = BTreeSet<String>;

/// The contract. Indentation says what a line belongs to.
fn stated() -> Lines {
    let mut lines = Lines::new();
    let (mut file, mut item) = ("", "");
    for line in include_str!("contract.txt").lines() {
        let text = line.trim_start();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        match line.len() - text.len() {
            0 => file = text,
            2 => {
                item = text;
                assert!(
                    lines.insert(format!("{file} / {item}")),
                    "{item} is there twice"
                );
            }
            _ => assert!(
                lines.insert(format!("{file} / {item} / {text}")),
                "{text} is there twice"
            ),
        }
    }
    lines
}

/// What the proto files declare.
fn declared() -> Lines {
    let proto_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let inputs = FILES.map(|file| format!("{proto_dir}/{file}"));
    let parsed = protobuf_parse::Parser::new()
        .pure()
        .include(proto_dir)
        .inputs(inputs)
        .parse_and_typecheck()
        .unwrap();
    let mut lines = Lines::new();
    for file in &parsed.file_descriptors {
        if FILES.contains(&file.name()) {
            declared_in(file, &mut lines);
        }
    }
    lines
}

fn declared_in(file: &FileDescriptorProto, lines: &mut Lines) {
    let name = file.name();
    let package = file.package();
    for service in &file.service {
        let service_line = format!("{name} / service {}", service.name());
        for method in &service.method {
            let (input, output) = (method.input_type(), method.output_type());
            assert!(!method.client_streaming() && !method.server_streaming());
            lines.insert(format!(
                "{service_line} / {} {} {}",
                method.name(),
                short(input, package),
                short(output, package)
            ));
        }
        lines.insert(service_line);
    }
    for message in &file.message_type {
        let message_line = format!("{name} / message {}", message.name());
        for field in &message.field {
            lines.insert(format!(
                "{message_line} / {}",
                describe(field, message, package)
            ));
        }
        for nested in &message.enum_type {
            let path = format!("{}.{}", message.name(), nested.name());
            enumeration(name, &path, nested, lines);
        }
        lines.insert(message_line);
    }
    for top in &file.enum_type {
        enumeration(name, top.name(), top, lines);
    }
}

fn enumeration(file: &str, path: &str, values: &EnumDescriptorProto, lines: &mut Lines) {
    for value in &values.value {
        lines.insert(format!(
            "{file} / enum {path} / {} {}",
            value.number(),
            value.name()
        ));
    }
    lines.insert(format!("{file} / enum {path}"));
}

/// The name of a type without the package it is used in, and without what it is nested in.
fn short(name: &str, package: &str) -> String {
    let name = name.trim_start_matches('.');
    let (scope, last) = name.rsplit_once('.').unwrap();
    let scope = scope.split('.').next().unwrap();
    if scope == package || name == "google.protobuf.Empty" {
        return last.to_owned();
    }
    format!("{scope}.{last}")
}

fn describe(field: &FieldDescriptorProto, message: &DescriptorProto, package: &str) -> String {
    let head = format!("{} {}", field.number(), field.name());
    let entry = message.nested_type.iter().find(|nested| {
        field
            .type_name()
            .ends_with(&format!(".{}.{}", message.name(), nested.name()))
    });
    if let Some(entry) = entry {
        let part = |index: usize| type_name(&entry.field[index], package);
        return format!("{head} map<{},{}>", part(0), part(1));
    }
    let label = match field.label() {
        Label::LABEL_REPEATED => " repeated",
        _ if field.proto3_optional() => " optional",
        _ if field.has_oneof_index() => " oneof",
        _ => "",
    };
    format!("{head} {}{label}", type_name(field, package))
}

fn type_name(field: &FieldDescriptorProto, package: &str) -> String {
    match field.type_() {
        Type::TYPE_MESSAGE | Type::TYPE_ENUM => short(field.type_name(), package),
        scalar => format!("{scalar:?}")
            .trim_start_matches("TYPE_")
            .to_lowercase(),
    }
}

#[test]
fn proto_files_keep_the_contract() {
    let (stated, declared) = (stated(), declared());
    let missing: Vec<_> = stated.difference(&declared).collect();
    let added: Vec<_> = declared.difference(&stated).collect();
    assert!(
        missing.is_empty() && added.is_empty(),
        "in the contract only: {missing:#?}\nin the proto files only: {added:#?}"
    );
    assert!(stated.len() > 500, "the contract is cut short");
}

#[test]
fn the_only_oneof_has_its_name() {
    let syscall = protocols::oci::LinuxSyscall {
        ErrnoRet: Some(protocols::oci::linux_syscall::ErrnoRet::Errnoret(1)),
        ..Default::default()
    };
    assert!(syscall.ErrnoRet.is_some());
}
