# frozen_string_literal: true

# The header's host as the controller, for laptops that have Vagrant and a provider and nothing else. The checkout is copied
# to it, Ansible runs there, and reports come back. Only Ruby and Vagrant's own SSH run on the laptop.
require "digest"
require "fileutils"
require "open3"
require "rubygems/package"
require "shellwords"
require "stringio"
require "tmpdir"
require "zlib"

module Guest
  FOLDER = "testbed" # in the home of user vagrant
  EXCHANGE = ".fl-testbed" # beside it, for user vagrant alone
  SCRIPTS = File.join(__dir__, "controller")
  # What is not copied: what .gitignore names, and versions. Inventories of one's own are.
  EXCLUDED = %w[.git .venv .vagrant .ansible node_modules __pycache__ .pytest_cache .mypy_cache .ruff_cache .hypothesis
                *.egg-info .coverage*].freeze
  EXCLUDED_AT_TOP = %w[runs backups results site dist final.keras fl-testbed-bundle*].freeze
  # Settings of the laptop that the controller needs too: package indexes, proxies and what is built. No paths.
  FORWARDED = %w[PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT UV_PYTHON_INSTALL_MIRROR GOPROXY
                 GOSUMDB GONOSUMDB HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy FL_NODE_MNIST_URL
                 FL_NODE_GETH_UNPATCHED FL_NODE_KUBO_UNPATCHED NO_COLOR ANSIBLE_VERBOSITY].freeze

  module_function

  # -- which machine is the controller --------------------------------------------------------------------------------

  def controller?(env = ENV)
    case (wanted = env["FL_TESTBED_CONTROLLER"].to_s)
    when "guest" then true
    when "host" then false
    when "" then !missing.empty?
    else Testbed.fail!("FL_TESTBED_CONTROLLER should be host or guest (is #{wanted})")
    end
  end

  # What this machine lacks to be the controller, in words.
  def missing
    @missing ||= find_missing
  end

  def find_missing(os = RbConfig::CONFIG["host_os"], cpu = RbConfig::CONFIG["host_cpu"], ansible: Testbed::ANSIBLE)
    return ["Ansible does not run on Windows"] if os.match?(/mswin|mingw|cygwin/)
    return ["Ansible's packages don't support Macs with Intel processors"] if os.match?(/darwin/) && cpu == "x86_64"
    return [] if File.executable?(ansible)

    lacks = %w[make bash ssh].reject { |program| runs?(program) }
    lacks << "Python 3.11, 3.12 or 3.13" unless %w[python3 python3.13 python3.12 python3.11].any? { |python| suits?(python) }
    lacks.empty? ? [] : ["#{lacks.join(', ')} not found"]
  end

  def runs?(program)
    ENV["PATH"].to_s.split(File::PATH_SEPARATOR).any? { |folder| File.executable?(File.join(folder, program)) }
  end

  def suits?(python)
    runs?(python) && Open3.capture2e(python, "-c", "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))").last.success?
  end

  # -- Ansible on the header ------------------------------------------------------------------------------------------

  def provision(header, arguments)
    reason = ENV["FL_TESTBED_CONTROLLER"].to_s.empty? ? " (#{missing.join}; FL_TESTBED_CONTROLLER=host overrides this)" : ""
    header.ui.info("All hosts are up. The controller is #{header.name}#{reason}.")
    send_checkout(header)
    run(header, "vagrant/controller/install") or Testbed.fail!("could not install Ansible on #{header.name}; see above, then run vagrant provision")
    run(header, Shellwords.join(["vagrant/controller/testbed", "site", *arguments])) or
      Testbed.fail!("Ansible failed; the machines stay up. Fix the cause above, then run vagrant provision")
    fetch_runs(header)
  end

  # Streams what the command says; returns whether it ended well.
  def run(header, command)
    color = $stdout.tty? && ENV["NO_COLOR"].to_s.empty? ? "ANSIBLE_FORCE_COLOR=1 " : ""
    code = header.communicate.execute("cd #{FOLDER} && #{color}#{command}", error_check: false) do |_, text|
      header.ui.info(text, prefix: false, new_line: false)
    end
    code.zero?
  end

  # -- the checkout, there --------------------------------------------------------------------------------------------

  # Does nothing if the header has this very checkout.
  def send_checkout(header)
    content = files
    machines = Digest::SHA256.hexdigest(Testbed.machine_ids.sort.join(" ")) # one that is created again has another host key
    state = digest(content, machines)
    return if header.communicate.test("[ \"$(cat #{FOLDER}/.vagrant/sent 2>/dev/null)\" = #{state} ]")

    header.ui.info("Copying the checkout to #{header.name}")
    header.communicate.execute("mkdir -p #{EXCHANGE} && chmod 0700 #{EXCHANGE}") # the archive has the key
    Dir.mktmpdir("fl-testbed") do |folder|
      archive = File.join(folder, "checkout.tar.gz")
      File.binwrite(archive, pack(content))
      [archive, File.join(SCRIPTS, "receive")].each { |path| header.communicate.upload(path, "#{EXCHANGE}/#{File.basename(path)}") }
    end
    header.communicate.execute("sh #{EXCHANGE}/receive #{EXCHANGE}/checkout.tar.gz #{FOLDER} #{state} #{machines}")
  end

  def digest(files, machines)
    files.sort.each_with_object(Digest::SHA256.new << machines) do |(name, (content, mode)), all|
      all << "#{name}\0#{mode}\0#{content.bytesize}\0" << content
    end.hexdigest
  end

  # The files of the checkout by name, and the three that the controller alone has.
  def files(root = Testbed::ROOT, env = ENV)
    found = list(root).to_h { |name| [name, File.join(root, name)] }
    inventory = Testbed.inventory_name
    Testbed.fail!("#{inventory} should be in #{root}, for the controller is a host") unless found.key?(inventory)
    found.transform_values { |path| [File.binread(path), mode(path)] }.merge(
      ".vagrant/testbed_key" => [File.binread(Testbed.key), 0o600],
      ".vagrant/testbed_key.pub" => [File.binread("#{Testbed.key}.pub"), 0o644],
      ".vagrant/environment" => [environment(inventory, env), 0o600]
    )
  end

  def list(root, below = "")
    Dir.children(File.join(root, below)).sort.flat_map do |base|
      name = below.empty? ? base : "#{below}/#{base}"
      path = File.join(root, name)
      next [] if excluded?(name)
      next list(root, name) if File.directory?(path) && !File.symlink?(path)

      File.file?(path) ? [name] : []
    end
  end

  def excluded?(name)
    base = name.rpartition("/").last
    patterns = EXCLUDED + (base == name ? EXCLUDED_AT_TOP : [])
    patterns.any? { |pattern| File.fnmatch(pattern, base, File::FNM_DOTMATCH) }
  end

  # Windows has no such permission, so a program is what begins as one.
  def mode(path)
    File.binread(path, 2) == "#!" ? 0o755 : 0o644
  end

  def environment(inventory, env)
    settings = { "ANSIBLE_INVENTORY" => inventory }.merge(env.to_h.slice(*FORWARDED))
    settings.map { |name, value| "export #{name}=#{Shellwords.escape(value)}\n" }.join
  end

  def pack(files)
    tar = StringIO.new("".b)
    Gem::Package::TarWriter.new(tar) do |writer|
      files.sort.each do |name, (content, mode)|
        raise Gem::Package::TooLongFileName if name.include?("\n") # the scripts there read names line by line

        writer.add_file_simple(name, mode, content.bytesize) { |io| io.write(content) }
      rescue Gem::Package::TooLongFileName
        Testbed.fail!("#{name.inspect}: to be copied to the header, a name should have one line and at most 100 bytes; rename it, or move it elsewhere")
      end
    end
    packed = StringIO.new("".b)
    Zlib::GzipWriter.wrap(packed) { |gzip| gzip.write(tar.string) }
    packed.string
  end

  # -- reports, back --------------------------------------------------------------------------------------------------

  # What is new in runs/ since the last time.
  def fetch_runs(header, root = Testbed::ROOT)
    return unless header.communicate.test("sh #{FOLDER}/vagrant/controller/new_runs $HOME/#{EXCHANGE}/runs.tar.gz")

    Dir.mktmpdir("fl-testbed") do |folder|
      path = File.join(folder, "runs.tar.gz")
      header.communicate.download("#{EXCHANGE}/runs.tar.gz", path)
      names = unpack(File.binread(path), root)
      header.ui.info("Fetched from #{header.name}: #{names.map { |name| File.dirname(name) }.uniq.sort.join(', ')}") unless names.empty?
    end
    header.communicate.execute("mv #{FOLDER}/.vagrant/fetching #{FOLDER}/.vagrant/fetched")
  end

  # Writes regular files below runs/ and nothing else, whatever the archive has.
  def unpack(archive, root)
    Gem::Package::TarReader.new(Zlib::GzipReader.new(StringIO.new(archive))).filter_map do |entry|
      next unless entry.file?

      name = entry.full_name
      unless name.match?(%r{\Aruns(/[\w][\w.-]*)+\z})
        Testbed.fail!("the header sent a file with the name #{name.inspect}; should be below runs/")
      end
      path = File.join(root, name)
      FileUtils.mkdir_p(File.dirname(path))
      File.binwrite(path, entry.read || "")
      name
    end
  end
end
