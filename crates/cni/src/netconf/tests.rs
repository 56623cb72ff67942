use std::path::Path;

use super::*;
use serde_json::json;

fn around() -> Surroundings {
    Surroundings {
        program: Program::Podspan,
        cni_path: None,
        cni_args: None,
    }
}

/// The configuration with these keys put in.
fn parse(changes: Value) -> Result<NetConf, String> {
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": "podspan", "type": "podspan-cni",
        "ipam": {"ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]]},
    });
    for (key, value) in changes.as_object().unwrap() {
        conf[key] = value.clone();
    }
    let bytes = serde_json::to_vec(&conf).unwrap();
    Input::parse(&bytes, around())
        .and_then(|input| input.netconf())
        .map_err(|error| format!("{} {error}", error.code()))
}

#[test]
fn what_is_not_said_has_our_own_defaults() {
    let conf = parse(json!({})).unwrap();
    assert_eq!(conf.bridge.as_str(), "podspan0");
    assert_eq!(
        (conf.gateway, conf.mtu, conf.hairpin),
        (Gateway::Default, None, true)
    );
    assert!(
        matches!(conf.addresses, AddressSource::Own(own) if own.data_dir == Path::new("/run/podspan/ipam"))
    );
}

#[test]
fn a_pod_sends_as_itself_unless_told_otherwise() {
    let spoofing = |keys| parse(keys).unwrap().spoofing;
    assert_eq!(spoofing(json!({})), Spoofing::Refused);
    assert_eq!(spoofing(json!({"macspoofchk": true})), Spoofing::Refused);
    assert_eq!(spoofing(json!({"antiSpoof": false})), Spoofing::Allowed);
    let macs = json!({"antiSpoof": false, "macspoofchk": true});
    assert_eq!(spoofing(macs), Spoofing::RefusedMacs);
}

#[test]
fn pods_are_routed_to_by_a_gateway_only() {
    assert!(!parse(json!({})).unwrap().routed);
    assert!(parse(json!({"routed": true})).unwrap().routed);
    let told = parse(json!({"routed": true, "isGateway": false})).unwrap_err();
    assert!(told.starts_with("7 routed is true, so that"), "{told}");
}

#[test]
fn a_default_gateway_is_a_gateway() {
    let gateway = |keys| parse(keys).unwrap().gateway;
    assert_eq!(gateway(json!({"isGateway": true})), Gateway::Default);
    assert_eq!(gateway(json!({"isGateway": false})), Gateway::None);
    assert_eq!(
        gateway(json!({"isGateway": false, "isDefaultGateway": true})),
        Gateway::Default
    );
    assert_eq!(
        gateway(json!({"isGateway": true, "isDefaultGateway": false})),
        Gateway::Present
    );
    assert_eq!(gateway(json!({"isDefaultGateway": false})), Gateway::None);
}

#[test]
fn t13_t14_t16_a_bad_value_is_told_with_key_value_and_what_would_be_right() {
    let refused = |keys| parse(keys).unwrap_err();
    assert_eq!(
        refused(json!({"cniVersion": "0.9.9"})),
        "1 cniVersion is \"0.9.9\"; this plugin speaks 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"
    );
    assert!(refused(json!({"name": "a/b"})).starts_with("7 name: network name \"a/b\" must begin"));
    assert!(refused(json!({"name": null})).starts_with("7 name: "));
    assert_eq!(
        refused(json!({"mtu": 1000})),
        "7 mtu is 1000; it must be from 1280 to 65535 bytes"
    );
    assert!(refused(json!({"mtu": "big"})).starts_with("7 mtu: invalid type: string \"big\""));
    assert!(refused(json!({"bridge": "a b"})).starts_with("7 bridge: interface name \"a b\""));
    assert!(parse(json!({"ipMasq": false, "vlan": 0, "vlanTrunk": []})).is_ok());
    assert!(refused(json!({"ipam": null})).starts_with("7 ipam is missing"));
    let garbage = Input::parse(b"[1]", around()).unwrap_err();
    assert_eq!(garbage.code(), 6);
}

#[test]
fn t17_keys_of_the_protocol_and_of_others_are_accepted() {
    let keys = json!({"runtimeConfig": {"theirs": "x"}, "args": {}, "cni.dev/x": 1, "capabilities": {}, "mine": 7});
    assert!(parse(keys).is_ok());
}

#[test]
fn t29_gc_without_a_list_is_no_list_of_nothing() {
    let conf = |keys: Value| {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "podspan"});
        conf.as_object_mut()
            .unwrap()
            .extend(keys.as_object().unwrap().clone());
        Input::parse(&serde_json::to_vec(&conf).unwrap(), around())
            .unwrap()
            .valid_attachments()
    };
    assert!(conf(json!({})).is_err());
    assert!(conf(json!({"cni.dev/valid-attachments": null})).is_err());
    assert_eq!(
        conf(json!({"cni.dev/valid-attachments": []}))
            .unwrap()
            .len(),
        0
    );
    let one = json!([{"containerID": "c1", "ifname": "eth0"}]);
    assert_eq!(
        conf(json!({"cni.dev/valid-attachments": one}))
            .unwrap()
            .len(),
        1
    );
    let bad = conf(json!({"cni.dev/valid-attachments": [{"containerID": "c1"}]})).unwrap_err();
    assert!(bad.to_string().contains("missing field `ifname`"), "{bad}");
}

#[test]
fn del_needs_no_more_than_the_name_and_the_directory() {
    let conf =
        br#"{"cniVersion":"1.0.0","name":"n","ipam":{"ranges":"broken","dataDir":"/tmp/x"}}"#;
    let input = Input::parse(conf, around()).unwrap();
    assert!(matches!(input.address_store(), AddressStore::Own(dir) if dir == Path::new("/tmp/x")));
    assert!(input.netconf().is_err());
}
