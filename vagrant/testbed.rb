# frozen_string_literal: true

# What the Vagrantfile needs beyond Vagrant: the hosts of the inventory, the testbed's SSH key, Ansible once for all.
require "fileutils"
require "io/wait"
require "ipaddr"
require "open3"
require "shellwords"
require "socket"
require "yaml"
require_relative "boxes"
require_relative "guest"

module Testbed
  ROOT = File.expand_path("..", __dir__)
  INVENTORY = File.expand_path([ENV["FL_TESTBED_INVENTORY"].to_s, "inventory/hosts.yml"].reject(&:empty?).first, ROOT)
  STATE = File.join(ROOT, ".vagrant") # the inventory names the two files below it
  DOTFILES = File.expand_path(ENV["VAGRANT_DOTFILE_PATH"] || ".vagrant", ROOT)
  KNOWN_HOSTS = File.join(STATE, "known_hosts")
  ANSIBLE = File.join(ROOT, ".venv/bin/ansible-playbook")
  IMAGE = "fl-testbed"
  BASE = %r{\A[a-z0-9][\w./:@-]*\z} # what Docker takes as an image's name, about
  LABEL = "fl-testbed.folder" # on each container: whose host it is
  PRIVATE = %w[10.0.0.0/8 172.16.0.0/12 192.168.0.0/16].map { |range| IPAddr.new(range) }

  OFF = %i[not_created stopped poweroff shutoff not_running].freeze # in the providers' words

  Host = Struct.new(:name, :address, :memory, :cpus, :header, :base)

  @lock = Monitor.new # providers bring machines up in threads of one process
  @done = {}

  module_function

  # Ends Vagrant with one line instead of a backtrace.
  def fail!(text)
    raise Class.new(Vagrant::Errors::VagrantError) { error_message(text) }
  end

  # What the system says, without the names of Ruby's functions.
  def reason(error)
    error.class.new.message
  end

  # -- the inventory --------------------------------------------------------------------------------------------------

  # Vagrant reads this for every command, also for status and destroy, and in a fresh clone before Ansible is installed.
  # So it does not call ansible-inventory, which needs Ansible and takes a second; site.yml checks the rest of the inventory.
  def hosts
    @hosts ||= read_hosts
  end

  def read_hosts
    found = {}
    collect(YAML.safe_load(text = read_text, aliases: true), {}, found)
    bad("has no hosts") if found.empty?
    found.map { |name, vars| host(name, vars) }.tap { |list| check_addresses(list) }
  rescue Errno::ENOENT
    bad("no such file")
  rescue Errno::EISDIR
    bad("is a folder; FL_TESTBED_INVENTORY should name a file, such as inventory/hosts.yml")
  rescue SystemCallError => e
    bad("can't be read: #{reason(e)}")
  rescue SystemStackError
    bad("has a group that is its own child")
  rescue Psych::SyntaxError => e
    bad("line #{e.line} is indented by a tab; use spaces") if text.lines[e.line - 1].to_s.match?(/\A\s*\t/)
    bad("line #{e.line} is not YAML: #{e.problem}")
  rescue Psych::Exception => e
    bad("is not YAML: #{e.message}")
  end

  # As other systems may have written it: with a byte-order mark, or in another encoding.
  def read_text
    text = File.binread(INVENTORY).delete_prefix("\xEF\xBB\xBF".b).force_encoding(Encoding::UTF_8)
    text.valid_encoding? ? text : bad("is not UTF-8; save it as UTF-8")
  end

  # Ansible's shape: a group has vars, hosts and children; the nearer variable wins.
  def collect(groups, inherited, found)
    bad("should be a mapping of groups") unless groups.is_a?(Hash)
    groups.each do |name, group|
      group ||= {}
      bad("group #{name} should be a mapping") unless group.is_a?(Hash)
      %w[vars hosts children].each do |part|
        bad("#{part} of group #{name} should be a mapping") unless group[part].nil? || group[part].is_a?(Hash)
      end
      vars = inherited.merge(group["vars"] || {})
      vars = vars.merge(header: true) if name == "headers"
      (group["hosts"] || {}).each do |host, own|
        bad("host #{host}: its variables should be a mapping") unless own.nil? || own.is_a?(Hash)
        found[host.to_s] = vars.merge(found[host.to_s] || {}).merge(own || {})
      end
      collect(group["children"], vars, found) if group["children"]
    end
  end

  def host(name, vars)
    bad("host #{name}: the name should have only letters, digits and hyphens") unless name.match?(/\A[a-z\d]([a-z\d-]*[a-z\d])?\z/i)
    address = vars["ansible_host"] or bad("host #{name}: ansible_host is missing")
    memory, cpus = { "vm_memory" => 3072, "vm_cpus" => 2 }.map do |key, default|
      value = vars.fetch(key, default)
      value.is_a?(Integer) && value.positive? ? value : bad("host #{name}: #{key} should be a positive whole number (is #{value})")
    end
    Host.new(name, address.to_s, memory, cpus, vars[:header], base(name, vars["vm_base"]))
  end

  # The base image of its container, if it has one of its own.
  def base(name, base)
    return base if base.nil? || (base.is_a?(String) && base.match?(BASE))

    bad("host #{name}: vm_base should be the name of a container image, such as debian:bookworm (is #{base})")
  end

  def check_addresses(list)
    list.each do |host|
      unless host.address.match?(/\A\d+\.\d+\.\d+\.\d+\z/) && (IPAddr.new(host.address) rescue false)
        bad("host #{host.name}: ansible_host should be an IPv4 address (is #{host.address})")
      end
      unless PRIVATE.any? { |range| range.include?(host.address) } && host.address.split(".").last.to_i.between?(2, 254)
        bad("host #{host.name}: #{host.address} should be in a private range and end in 2 to 254")
      end
      first = list.find { |other| other.address == host.address }
      bad("host #{host.name}: #{host.address} is already the address of #{first.name}") unless first.equal?(host)
      unless host.address.rpartition(".").first == list.first.address.rpartition(".").first
        bad("host #{host.name}: #{host.address} should be in the /24 network of #{list.first.name}, #{list.first.address}")
      end
    end
  end

  def bad(problem)
    fail!("#{inventory_name}: #{problem}")
  end

  def inventory_name
    INVENTORY.delete_prefix("#{ROOT}/")
  end

  # -- the key --------------------------------------------------------------------------------------------------------

  # Created once. The private half stays on this machine, unless the header is the controller.
  def key
    path = File.join(STATE, "testbed_key")
    create_key(path) unless File.exist?(path)
    path
  end

  def create_key(path)
    FileUtils.mkdir_p(STATE)
    return create_key_without_openssh(path) unless Guest.runs?("ssh-keygen") || Guest.runs?("ssh-keygen.exe")

    new = "#{path}.new"
    FileUtils.rm_f([new, "#{new}.pub"]) # of one that was interrupted
    out, status = Open3.capture2e("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "fl-testbed", "-f", new)
    fail!("could not create an SSH key: #{out.strip}") unless status.success?
    File.rename("#{new}.pub", "#{path}.pub")
    File.rename(new, path)
  rescue SystemCallError => e
    fail!("could not create an SSH key in #{STATE}: #{reason(e)}")
  end

  def create_key_without_openssh(path)
    require "vagrant/util/keypair"
    _, private_key, public_key = Vagrant::Util::Keypair.create
    File.write("#{path}.pub", "#{public_key.strip}\n")
    File.write(path, private_key, perm: 0o600)
  end

  def public_key
    File.read("#{key}.pub").strip
  rescue Errno::ENOENT
    path = Shellwords.escape(key)
    fail!("#{key}.pub is missing; ssh-keygen -y -f #{path} >#{path}.pub writes it again")
  end

  # A machine that is created again has a new host key.
  def forget_host_key(address)
    return unless File.exist?(KNOWN_HOSTS)

    Open3.capture2e("ssh-keygen", "-R", address, "-f", KNOWN_HOSTS)
  end

  # -- before and after the machines ----------------------------------------------------------------------------------

  def use_box(settings, provider)
    box = Boxes.choose(provider)
    settings.box = box.name
    settings.box_version = box.version if box.version
    settings.box_url = box.url if box.url
    return unless box.sha256

    settings.box_download_checksum = box.sha256
    settings.box_download_checksum_type = "sha256"
  end

  def prepare(machine)
    @lock.synchronize do
      check_box(machine) unless machine.provider_name == :docker
      check_address_is_free(machine) if OFF.include?(machine.state.id)
      forget_host_key(address_of(machine)) if machine.state.id == Vagrant::MachineState::NOT_CREATED_ID
      once(:controller) { install_ansible(machine) } if provision? && !Guest.controller?
      once([:image, image(host_of(machine))]) { build_image(machine) } if machine.provider_name == :docker
    end
  end

  def check_box(machine)
    problem = Boxes.problem(machine.provider_name, !machine.box.nil?) or return
    fail!("#{machine.name}: #{problem}") if machine.state.id == Vagrant::MachineState::NOT_CREATED_ID
  end

  # Hosts of another folder, or of one that was deleted without `vagrant destroy`.
  def check_address_is_free(machine)
    address = address_of(machine)
    name, folder = container_at(address) if machine.provider_name == :docker
    return unless name || ssh?(address)

    holder = name ? "the container #{name}" : "another machine"
    holder += ", a host of #{folder}" unless folder.to_s.empty?
    remedy =
      if folder.to_s != ROOT && File.exist?(File.join(folder.to_s, "Vagrantfile"))
        "Remove the hosts of that folder (cd #{Shellwords.escape(folder)} && vagrant destroy -f)"
      else
        name ? "Remove it (docker rm --force #{name})" : "Remove that machine"
      end
    fail!("#{machine.name}: #{address} is in use by #{holder}. #{remedy}, or choose another network in #{inventory_name}.")
  end

  # The name of the running container that has an address, and the folder whose host it is.
  def container_at(address)
    containers, status = Open3.capture2e("docker", "ps", "--quiet")
    return unless status.success? && !containers.strip.empty?

    format = "{{.Name}}\t{{index .Config.Labels \"#{LABEL}\"}}\t{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
    found, = Open3.capture2("docker", "inspect", "--format", format, *containers.split, err: File::NULL)
    found.lines.map { |line| line.chomp.split("\t", 3) }
         .find { |_, _, addresses| addresses.to_s.split.include?(address) }
         &.then { |name, folder, _| [name.delete_prefix("/"), folder] }
  rescue Errno::ENOENT
    nil
  end

  # By its greeting: some networks accept connections to any address.
  def ssh?(address)
    Socket.tcp(address, 22, connect_timeout: 1) { |socket| socket.wait_readable(1) && socket.readpartial(4) == "SSH-" }
  rescue SystemCallError, IOError
    false
  end

  def provision(machine)
    return unless provision?

    @lock.synchronize do
      next if @done[:ansible]

      note_authorized(machine)
      absent = Guest.controller? ? unauthorized_hosts : silent_hosts
      if absent.empty?
        once(:ansible) { run_ansible(machine) }
      else
        machine.ui.info("Ansible runs when all hosts are up; missing: #{absent.map(&:name).join(', ')}.")
      end
    end
  end

  def silent_hosts
    hosts.map { |host| [host, Thread.new { answers?(host) }] }.reject { |_, thread| thread.value }.map(&:first)
  end

  # A machine whose provisioners have run has the testbed's key. Each notes this itself: its SSH session is its thread's.
  def note_authorized(machine)
    machine.data_dir.join("fl_testbed_authorized").write(machine.id)
  end

  def unauthorized_hosts
    ids = machine_ids
    hosts.reject do |host|
      folder = machine_folder(host.name)
      noted = folder && File.join(folder, "fl_testbed_authorized")
      noted && File.exist?(noted) && File.read(noted) == ids[host.name] && ssh?(host.address)
    end
  end

  # Vagrant's own identifiers of the machines that exist.
  def machine_ids
    hosts.filter_map { |host| (folder = machine_folder(host.name)) && [host.name, File.read(File.join(folder, "id"))] }.to_h
  end

  # Where Vagrant keeps what it knows of a machine that exists.
  def machine_folder(name)
    folder = File.join(DOTFILES, "machines", name) # no pattern, whatever the checkout's path has in it
    id = Dir.glob("*/id", base: folder).first and File.join(folder, File.dirname(id))
  end

  def controlling_machine(machine)
    header?(machine) ? machine : machine.env.machine(header.name.to_sym, File.basename(machine_folder(header.name)).to_sym)
  end

  # `vagrant ssh HEADER -c 'testbed …'` uses the checkout as it is now, and its reports come back.
  def before_command(machine)
    Guest.send_checkout(machine) if Guest.controller? && header?(machine)
  end

  def after_command(machine)
    Guest.fetch_runs(machine) if Guest.controller? && header?(machine)
  end

  def header?(machine)
    header.name == machine.name.to_s
  end

  def header
    hosts.find(&:header) or bad("has no host in the group headers")
  end

  def provision?
    ENV["FL_TESTBED_PROVISION"] != "0" && !ARGV.include?("--no-provision")
  end

  # Runs the block for the first machine; the others share how it ended.
  def once(what)
    @done[what] ||= begin
      yield
      :well
    rescue Vagrant::Errors::VagrantError => e
      e
    end
    raise @done[what] if @done[what].is_a?(Exception)
  end

  def install_ansible(machine)
    return if File.executable?(ANSIBLE)

    machine.ui.info("Installing Ansible into .venv: make controller")
    call("make", "controller") or fail!("could not install Ansible into .venv; see above, then run make controller")
  end

  def build_image(machine)
    Boxes.release # a wrong one ends here
    host = host_of(machine)
    call(File.join(ROOT, "vagrant/image"), image(host), *host.base) or
      fail!("#{machine.name}: could not build the container image; see above")
  end

  # A base of its own makes an image of its own (ansible/bundle.yml has these names too).
  def image(host)
    host.base ? "#{IMAGE}:#{host.base.gsub(/[^\w.-]/, '-')}" : IMAGE
  end

  # By the testbed's key: an open port alone can be a machine that has it not yet, or another one.
  def answers?(host)
    options = %W[BatchMode=yes IdentitiesOnly=yes ConnectTimeout=3 StrictHostKeyChecking=no UserKnownHostsFile=/dev/null
                 LogLevel=ERROR].flat_map { |option| ["-o", option] }
    Open3.capture2e("ssh", "-F", "none", *options, "-i", key, "vagrant@#{host.address}", "true").last.success?
  end

  def run_ansible(machine)
    arguments = ansible_arguments
    return Guest.provision(controlling_machine(machine), arguments) if Guest.controller?

    command = [ANSIBLE, "-i", INVENTORY, "ansible/site.yml", *arguments]
    machine.ui.info("All hosts are up: #{command.map { |word| word.delete_prefix("#{ROOT}/") }.join(' ')}")
    call(*command) or fail!("Ansible failed; the machines stay up. Fix the cause above, then run vagrant provision")
  end

  def ansible_arguments
    Shellwords.split(ENV["FL_TESTBED_ARGS"] || "")
  rescue ArgumentError
    fail!("FL_TESTBED_ARGS has a quote without its counterpart; should be arguments of ansible-playbook, such as -e 'a=b'")
  end

  # In the project's folder, with the terminal and without what Vagrant puts into its own environment.
  def call(*command)
    Vagrant::Util::Env.with_original_env { system(*command, chdir: ROOT) }
  end

  def provider_in_use
    Dir.glob("machines/*/*/id", base: DOTFILES).map { |id| File.basename(File.dirname(id)) }.first
  end

  def address_of(machine)
    host_of(machine).address
  end

  def host_of(machine)
    hosts.find { |host| host.name == machine.name.to_s }
  end

  # For machines without KVM or with a box that lacks a boot loader (vagrant/libvirt-engine and vagrant/box say them).
  def libvirt_settings
    %w[driver cpu_mode kernel initrd cmd_line storage_pool_name].filter_map do |name|
      value = ENV["FL_TESTBED_LIBVIRT_#{name.upcase}"]
      [name, value] if value && !value.empty?
    end
  end
end
