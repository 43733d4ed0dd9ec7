// SPDX-License-Identifier: Apache-2.0
//! Stories on the built image in real VMs, one file per capability. The first that CI runs are the cheapest that can fail.

mod agree;
mod cli;
mod clock;
mod cuts;
mod firmware;
mod footprint;
mod forms;
mod health;
mod immutable;
mod install;
mod media;
mod mistake;
mod neighbour;
mod network;
mod outsiders;
mod own_user;
mod power_cut;
mod stick;
mod update;
mod update_broken;

use std::process::ExitCode;

use cluster_e2e::{Story, runner};

const STORIES: &[Story] = &[
    Story { name: "forms", ci: Some(10), run: forms::three_become_one_cluster_and_nothing_is_readable },
    Story { name: "health", ci: Some(20), run: health::nothing_has_failed },
    Story { name: "own_user", ci: Some(30), run: own_user::the_agent_is_nobody_special },
    Story { name: "cli", ci: Some(10), run: cli::errors_say_what_to_do },
    Story { name: "power_cut_one", ci: Some(120), run: power_cut::one_is_missed_and_comes_back },
    Story { name: "outsiders", ci: Some(130), run: outsiders::strangers_change_nothing },
    Story { name: "power_cut_all", ci: Some(150), run: power_cut::all_come_back_as_one_cluster },
    Story { name: "mistake", ci: Some(90), run: mistake::a_wrong_file_never_bricks_a_node },
    Story { name: "immutable", ci: Some(255), run: immutable::only_var_persists },
    Story { name: "footprint", ci: None, run: footprint::the_agent_is_small },
    Story { name: "firmware", ci: None, run: firmware::firmware_and_esp_are_not_obeyed },
    Story { name: "flipped_byte", ci: None, run: immutable::a_flipped_byte_is_a_read_error },
    Story { name: "media_two_versions", ci: None, run: media::the_booted_disk_wins_with_two_versions },
    Story { name: "media_same_version", ci: None, run: media::the_booted_disk_wins_with_one_version },
    Story { name: "media_provision", ci: None, run: media::a_node_provisions_a_stick },
    Story { name: "media_slow_disk", ci: None, run: media::a_slow_disk_is_waited_for },
    Story { name: "media_small_disk", ci: None, run: media::a_disk_too_small_is_named },
    Story { name: "media_usb2", ci: None, run: media::boots_from_usb_2 },
    Story { name: "media_usb", ci: None, run: media::boots_from_usb },
    Story { name: "media_nvme", ci: None, run: media::boots_from_nvme },
    Story { name: "media_sata", ci: None, run: media::boots_from_sata },
    Story { name: "media_virtio", ci: None, run: media::boots_from_virtio },
    Story { name: "network_clock", ci: None, run: clock::dead_clocks_keep_nobody_out },
    Story { name: "network_one_lan", ci: None, run: network::a_pulled_cable_stops_nothing_on_one_lan },
    Story { name: "network_two_lans", ci: None, run: network::a_pulled_cable_stops_nothing_on_two_lans },
    Story { name: "update_by_file", ci: Some(330), run: update::by_file },
    Story { name: "update_by_neighbour", ci: None, run: neighbour::by_neighbour },
    Story { name: "update_never_up", ci: None, run: update::never_up_is_given_up },
    Story { name: "update_power_lost_on_trial", ci: None, run: update::power_lost_on_trial },
    Story { name: "update_broken_kernel", ci: None, run: update_broken::kernel_or_initrd },
    Story { name: "update_broken_network", ci: None, run: update_broken::no_network },
    Story { name: "update_broken_agent", ci: None, run: update_broken::agent },
    Story { name: "update_broken_start", ci: None, run: update_broken::start },
    Story { name: "install_to_nvme", ci: None, run: install::to_nvme },
    Story { name: "powercut_log", ci: None, run: cuts::every_cut_leaves_a_whole_version },
    Story { name: "powercut_boots", ci: None, run: cuts::cut_disks_boot },
    Story { name: "network_late_ports", ci: None, run: network::power_is_back_before_the_switch },
];

fn main() -> ExitCode {
    runner::main(STORIES)
}
