// SPDX-License-Identifier: Apache-2.0
//! Claims for devices that cannot be met. Each is refused with a word that says why, before anything is waited for, and changes nothing.

use protocols::agent::Device;
use tests::container::Builder;
use tests::given::{device, device_with};
use tests::{Code, Container, Service, expect_refusal, service_story};

/// The path that the specification has a device at.
const PATH: &str = "/dev/data";

/// A claim, and a part of the text that must say what is wrong with it.
type Claim<'a> = (&'a str, Device);

async fn expect_refused(agent: &Service, code: Code, claims: &[Claim<'_>]) {
    for (number, (part, claim)) in claims.iter().enumerate() {
        let id = format!("claim-{number}");
        let mut entry = claim.clone();
        entry.container_path = PATH.to_owned();
        let claims = vec![claim.clone()];
        let container = agent.container(&id).device(entry, "b", (8, 0));
        let result = container.request(|r| r.devices = claims).try_create().await;
        expect_refusal(result.map(drop), code, part);
        agent.expect_alive().await;
        // The id is free again.
        agent.container(&id).sh("exit 0").run().await.ok();
    }
}

#[test]
fn hostile_claims_are_refused_at_once() {
    service_story(async {
        let agent = Service::start().await;
        let long = "7/".repeat(5000);
        let claims = [
            ("type", device("", "02", "", PATH)),
            ("id", device("blk", "", "", PATH)),
            ("container_path", device("blk", "02", "", "")),
            ("device handler floppy", device("floppy", "02", "", PATH)),
            ("PCI path", device("blk", "../../etc/passwd", "", PATH)),
            ("PCI path", device("blk", &long, "", PATH)),
            ("SCSI Address", device("scsi", "0:0:0", "", PATH)),
            ("/dev", device("mmioblk", "", "/dev/../etc/passwd", PATH)),
            ("/dev", device("nvdimm", "", "/run/pmem0", PATH)),
            (
                "Missing devices in OCI spec: /dev/other",
                device("blk", "02", "", "/dev/other"),
            ),
            (
                "Malformed VFIO PCI option",
                device_with("vfio-pci", PATH, &["02"]),
            ),
            (
                "Malformed VFIO PCI option",
                device_with("vfio-pci-gk", PATH, &["3b:00.0=02"]),
            ),
            (
                "failed to get VFIO group",
                device_with("vfio-pci", PATH, &["0000:3b:00.0="]),
            ),
        ];
        expect_refused(&agent, Code::INVALID_ARGUMENT, &claims).await;
        let foreign = ["blk-ccw", "vfio-ap", "vfio-ap-cold"];
        let foreign = foreign.map(|name| (name, device(name, "0.0.0001", "", PATH)));
        expect_refused(&agent, Code::UNIMPLEMENTED, &foreign).await;

        let twice = agent
            .container("twice")
            .device(device("blk", "02", "", PATH), "b", (8, 0));
        let twice = twice.device(device("blk", "03", "", PATH), "b", (8, 16));
        let part = "Conflicting device updates for /dev/data";
        expect_refusal(
            twice.try_create().await.map(drop),
            Code::INVALID_ARGUMENT,
            part,
        );

        let crowd = agent.container("crowd").request(|r| {
            r.devices = vec![device("blk", "02", "", PATH); 10_000];
        });
        expect_refusal(
            crowd.try_create().await.map(drop),
            Code::INVALID_ARGUMENT,
            "too many",
        );
    });
}

fn asking(agent: &Service, id: &str, device: &str) -> Builder {
    let annotation = ("cdi.k8s.io/test".to_owned(), device.to_owned());
    agent
        .container(id)
        .spec(|s| s.Annotations.extend([annotation]))
}

#[test]
fn described_devices_have_names_and_are_given_up() {
    service_story(async {
        let agent = Service::start().await;
        for bad in ["", "gpu", "a/b=", "a/b=..", "a/b=c,", "1/b=c"] {
            let result = asking(&agent, "bad", bad).try_create().await;
            expect_refusal(result.map(drop), Code::INVALID_ARGUMENT, "CDI device");
        }
        // The pod's own container has none, whatever it says.
        let kind = "io.katacontainers.pkg.oci.container_type".to_owned();
        let pod = asking(&agent, "pod", "v.com/gpu=0");
        let pod = pod.spec(|s| s.Annotations.extend([(kind, "pod_sandbox".to_owned())]));
        pod.sh("exit 0").run().await.ok();

        let waiting = asking(&agent, "waiting", "v.com/gpu=0").try_create();
        let known = Container::known(&agent, "waiting");
        let removal = async {
            agent.expect_alive().await;
            known.remove().await;
        };
        let (result, ()) = tokio::join!(waiting, removal);
        expect_refusal(result.map(drop), Code::FAILED_PRECONDITION, "waiting");
        agent.container("waiting").sh("exit 0").run().await.ok();
    });
}

#[test]
fn every_type_is_named_to_the_host() {
    service_story(async {
        let agent = Service::start().await;
        let request = protocols::agent::GuestDetailsRequest::new();
        let details = agent.rpc().get_guest_details(&request).await;
        let details = details.expect("GetGuestDetails is answered");
        let types = [
            "blk",
            "mmioblk",
            "scsi",
            "nvdimm",
            "vfio-pci",
            "vfio-pci-gk",
        ];
        assert_eq!(details.agent_details.device_handlers, types);
    });
}
