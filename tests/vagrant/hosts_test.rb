# frozen_string_literal: true

require_relative "helper"

class HostsTest < TestbedTest
  def host(variables)
    Testbed.host("learner-1", { "ansible_host" => "192.168.56.11" }.merge(variables))
  end

  def test_a_host_has_the_image_of_all_unless_it_has_a_base_of_its_own
    assert_equal "fl-testbed", Testbed.image(host({}))
    assert_equal "fl-testbed:debian-bullseye", Testbed.image(host("vm_base" => "debian:bullseye"))
    assert_equal "fl-testbed:mirror.lab-5000-debian-12-slim", Testbed.image(host("vm_base" => "mirror.lab:5000/debian:12-slim"))
  end

  def test_arguments_with_an_open_quote_are_named
    ENV["FL_TESTBED_ARGS"] = "-e 'a=b"
    assert_fails("FL_TESTBED_ARGS has a quote without its counterpart") { Testbed.ansible_arguments }
    ENV["FL_TESTBED_ARGS"] = "-e 'a=b c'"
    assert_equal ["-e", "a=b c"], Testbed.ansible_arguments
  ensure
    ENV.delete("FL_TESTBED_ARGS")
  end

  def test_an_inventory_that_is_a_folder_is_named_and_an_empty_name_is_none
    look = "require_relative '#{File.expand_path('helper', __dir__)}'; " \
           "begin; Testbed.read_hosts; puts Testbed.inventory_name; rescue StandardError => e; puts e.message; end; $stdout.flush; exit!"
    { "" => "inventory/hosts.yml", "inventory" => "inventory: is a folder",
      "inventory/hosts.yml/x" => "inventory/hosts.yml/x: can't be read: Not a directory" }.each do |value, says|
      said, = Open3.capture2e({ "FL_TESTBED_INVENTORY" => value }, RbConfig.ruby, "-e", look)
      assert_includes said, says
    end
  end

  def test_a_group_in_itself_is_named
    with(:INVENTORY, File.expand_path("itself.yml", Dir.mktmpdir)) do
      File.write(Testbed::INVENTORY, "all: &all {children: {all: *all}}\n")
      assert_fails("has a group that is its own child") { Testbed.read_hosts }
    ensure
      FileUtils.rm_rf(File.dirname(Testbed::INVENTORY))
    end
  end

  # `vagrant up` may be interrupted while ssh-keygen runs.
  def test_a_key_is_there_with_its_public_half_or_not_at_all
    Dir.mktmpdir("a key") do |folder|
      File.write(File.join(folder, "ssh-keygen"), "#!/bin/sh\nfor path; do :; done\necho half >\"$path\"\nexit 1\n", perm: 0o755)
      path = ENV.fetch("PATH")
      with(:STATE, File.join(folder, "state")) do
        ENV["PATH"] = "#{folder}:#{path}"
        assert_fails("could not create an SSH key") { Testbed.key }
        ENV["PATH"] = path
        assert_match(/\Assh-ed25519 /, Testbed.public_key)
        assert_equal %w[testbed_key testbed_key.pub], Dir.children(Testbed::STATE).sort
        before = File.read(Testbed.key)
        File.delete("#{Testbed.key}.pub")
        assert_fails("testbed_key.pub is missing; ssh-keygen -y -f") { Testbed.public_key }
        assert_equal before, File.read(Testbed.key)
      end
    ensure
      ENV["PATH"] = path
    end
  end

  def test_a_folder_of_the_key_that_can_not_be_made_is_named
    Dir.mktmpdir do |folder|
      File.write(File.join(folder, "file"), "")
      with(:STATE, File.join(folder, "file")) { assert_fails("could not create an SSH key in #{folder}/file: File exists") { Testbed.key } }
    end
  end

  def test_a_machine_is_found_whatever_the_path_of_the_checkout
    Dir.mktmpdir("a [x] *") do |folder|
      FileUtils.mkdir_p(File.join(folder, "machines/learner-1/docker"))
      File.write(File.join(folder, "machines/learner-1/docker/id"), "1")
      with(:DOTFILES, folder) do
        assert_equal "docker", Testbed.provider_in_use
        assert_equal File.join(folder, "machines/learner-1/docker"), Testbed.machine_folder("learner-1")
      end
    end
  end

  def test_two_bases_make_two_images
    images = %w[debian:bullseye debian:bookworm debian:trixie ubuntu:24.04].map { |base| Testbed.image(host("vm_base" => base)) }
    assert_equal images, images.uniq
  end

  def test_what_is_no_name_of_an_image_is_named
    ["", "--privileged", "a b", "Debian", 12, ["debian:bookworm"], "debian:12\nx"].each do |wrong|
      assert_fails("host learner-1: vm_base should be the name of a container image") { host("vm_base" => wrong) }
    end
  end
end
