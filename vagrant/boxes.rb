# frozen_string_literal: true

# Which box the virtual machines are made from. None of the defaults needs a box registry.
require "digest"
require "rbconfig"
require "yaml"

module Boxes
  Box = Struct.new(:name, :url, :sha256, :version)

  DEFAULT_RELEASE = "20.04" # as in the paper
  CODENAMES = YAML.safe_load(File.read(File.expand_path("../ansible/files/releases.yml", __dir__)))["ubuntu"]
                  .transform_values { |release| release["codename"] }.slice("20.04", "22.04", "24.04").freeze
  # Canonical publishes boxes for VirtualBox on amd64 only, and none since 24.04.
  PUBLISHED = %w[20.04 22.04].freeze
  SERVER = "https://cloud-images.ubuntu.com"

  module_function

  # The box that the environment asks for, or else the default of this provider, architecture and release.
  def choose(provider, env = ENV, architecture = host_architecture)
    name, url, version = %w[FL_TESTBED_BOX FL_TESTBED_BOX_URL FL_TESTBED_BOX_VERSION].map { |key| given(env, key) }
    sha256 = digest(env, url)
    if url
      # A name of its own, so that Vagrant doesn't take a box that was added from another URL.
      Box.new(name || "fl-testbed/#{Digest::SHA256.hexdigest("#{url} #{sha256}")[0, 12]}", url, sha256, nil)
    elsif name
      Box.new(name, nil, nil, version)
    else
      release = release(env)
      Box.new(default_name(release), published_url(provider, architecture, release), nil, nil)
    end
  end

  def release(env = ENV)
    wanted = given(env, "FL_TESTBED_RELEASE") || DEFAULT_RELEASE
    return wanted if CODENAMES.key?(wanted)

    Testbed.fail!("FL_TESTBED_RELEASE should be #{CODENAMES.keys.join(', ')} (is #{wanted}); " \
                  "for another system set FL_TESTBED_BOX or FL_TESTBED_BOX_URL")
  end

  def default_name(release)
    "fl-testbed/ubuntu-#{release}"
  end

  def published_url(provider, architecture, release)
    return unless provider.to_s == "virtualbox" && architecture == "amd64" && PUBLISHED.include?(release)

    codename = CODENAMES.fetch(release)
    "#{SERVER}/#{codename}/current/#{codename}-server-cloudimg-amd64-vagrant.box"
  end

  # What to do where nobody publishes the default box; nil if Vagrant has or finds the box.
  def problem(provider, installed, env = ENV, architecture = host_architecture)
    box = choose(provider, env, architecture)
    return if installed || box.url || given(env, "FL_TESTBED_BOX")

    release = release(env)
    nobody = "nobody publishes a box of Ubuntu #{release} for #{provider} on #{architecture}"
    if provider.to_s == "virtualbox" && architecture == "arm64"
      return "#{nobody}. Use VMware (--provider=vmware_desktop), or set FL_TESTBED_BOX_URL to a box file (vagrant/README.md)"
    end

    "#{nobody}. Build it on Linux: vagrant/cloud-box --provider=#{provider} --release=#{release} " \
      "--architecture=#{architecture}; or set FL_TESTBED_BOX_URL to a box file (vagrant/README.md)"
  end

  # Of this machine, which is also that of its virtual machines.
  def host_architecture(cpu = RbConfig::CONFIG["host_cpu"])
    case cpu
    when /\A(x86_64|amd64|x64)/i then "amd64"
    when /\A(arm64|aarch64)/i then "arm64"
    else cpu
    end
  end

  def given(env, key)
    env[key] unless env[key].to_s.empty?
  end

  def digest(env, url)
    sha256 = given(env, "FL_TESTBED_BOX_SHA256") or return
    Testbed.fail!("FL_TESTBED_BOX_SHA256 should be 64 hexadecimal digits (is #{sha256})") unless sha256.match?(/\A\h{64}\z/)
    url ? sha256.downcase : Testbed.fail!("FL_TESTBED_BOX_SHA256 needs FL_TESTBED_BOX_URL, the box file that has it")
  end
end
