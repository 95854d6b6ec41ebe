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
