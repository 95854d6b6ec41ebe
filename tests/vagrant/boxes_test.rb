# frozen_string_literal: true

require_relative "helper"

class BoxesTest < TestbedTest
  FOCAL = "https://cloud-images.ubuntu.com/focal/current/focal-server-cloudimg-amd64-vagrant.box"

  def choose(provider, architecture = "amd64", **env)
    Boxes.choose(provider, env.transform_keys(&:to_s), architecture)
  end

  def test_virtualbox_on_amd64_gets_the_box_that_ubuntu_publishes
    assert_equal Boxes::Box.new("fl-testbed/ubuntu-20.04", FOCAL, nil, nil), choose(:virtualbox)
    assert_includes choose(:virtualbox, FL_TESTBED_RELEASE: "22.04").url, "/jammy/current/jammy-"
  end

  def test_where_nobody_publishes_a_box_there_is_no_url_and_the_recipe_is_named
    [[:libvirt, "amd64", "20.04"], [:vmware_desktop, "arm64", "22.04"], [:virtualbox, "amd64", "24.04"]].each do |provider, architecture, release|
      env = { "FL_TESTBED_RELEASE" => release }
      assert_equal ["fl-testbed/ubuntu-#{release}", nil], Boxes.choose(provider, env, architecture).to_a.first(2)
      assert_includes Boxes.problem(provider, false, env, architecture),
                      "vagrant/cloud-box --provider=#{provider} --release=#{release} --architecture=#{architecture}"
      assert_nil Boxes.problem(provider, true, env, architecture)
    end
  end

  def test_virtualbox_on_arm64_has_neither_a_box_nor_a_recipe
    assert_includes Boxes.problem(:virtualbox, false, {}, "arm64"), "--provider=vmware_desktop"
    assert_nil Boxes.problem(:virtualbox, false, { "FL_TESTBED_BOX_URL" => "mine.box" }, "arm64")
  end

  def test_no_default_needs_a_registry
    %i[virtualbox vmware_desktop libvirt].product(%w[amd64 arm64], Boxes::CODENAMES.keys).each do |provider, cpu, release|
      env = { "FL_TESTBED_RELEASE" => release }
      url = Boxes.choose(provider, env, cpu).url
      assert url.nil? ? Boxes.problem(provider, false, env, cpu) : url.start_with?("https://cloud-images.ubuntu.com/")
    end
  end

  def test_a_given_url_has_a_name_of_its_own_and_its_digest
    digest = "A" * 64
    box = choose(:libvirt, FL_TESTBED_BOX_URL: "/kept/mine.box", FL_TESTBED_BOX_SHA256: digest)
    assert_equal ["/kept/mine.box", "a" * 64, nil], [box.url, box.sha256, box.version]
    assert_match %r{\Afl-testbed/\h{12}\z}, box.name
    refute_equal box.name, choose(:libvirt, FL_TESTBED_BOX_URL: "/kept/mine.box").name
    assert_equal "mine", choose(:libvirt, FL_TESTBED_BOX_URL: "/kept/mine.box", FL_TESTBED_BOX: "mine").name
    assert_nil Boxes.problem(:libvirt, false, { "FL_TESTBED_BOX_URL" => "/kept/mine.box" }, "amd64")
  end

  def test_a_version_counts_only_for_a_box_of_a_registry
    assert_equal "1.2", choose(:libvirt, FL_TESTBED_BOX: "a/b", FL_TESTBED_BOX_VERSION: "1.2").version
    assert_nil choose(:libvirt, FL_TESTBED_BOX_VERSION: "1.2").version
    assert_nil choose(:libvirt, FL_TESTBED_BOX: "a/b", FL_TESTBED_BOX_URL: "b.box", FL_TESTBED_BOX_VERSION: "1.2").version
  end

  def test_empty_variables_are_as_good_as_none
    assert_equal choose(:virtualbox), choose(:virtualbox, FL_TESTBED_BOX: "", FL_TESTBED_BOX_URL: "", FL_TESTBED_RELEASE: "")
  end

  def test_wrong_settings_are_named
    assert_fails("FL_TESTBED_RELEASE should be 20.04, 22.04, 24.04 (is 19.10)") { choose(:libvirt, FL_TESTBED_RELEASE: "19.10") }
    assert_fails("64 hexadecimal digits (is abc)") { choose(:libvirt, FL_TESTBED_BOX_URL: "x", FL_TESTBED_BOX_SHA256: "abc") }
    assert_fails("needs FL_TESTBED_BOX_URL") { choose(:libvirt, FL_TESTBED_BOX_SHA256: "a" * 64) }
  end

  def test_processors_have_ubuntus_names
    assert_equal %w[amd64 amd64 amd64 arm64 arm64 riscv64], %w[x86_64 amd64 x64 aarch64 arm64 riscv64].map { |cpu| Boxes.host_architecture(cpu) }
  end
end
