# frozen_string_literal: true

require_relative "helper"

class GuestTest < TestbedTest
  ROOT = Testbed::ROOT

  def with_path(path)
    before = ENV["PATH"]
    ENV["PATH"] = path
    yield
  ensure
    ENV["PATH"] = before
  end

  def program(folder, name, text = "exit 0")
    File.write(File.join(folder, name), "#!/bin/sh\n#{text}\n", perm: 0o755)
  end

  # -- which machine is the controller

  def test_the_variable_decides
    assert Guest.controller?({ "FL_TESTBED_CONTROLLER" => "guest" })
    refute Guest.controller?({ "FL_TESTBED_CONTROLLER" => "host" })
    assert_fails("should be host or guest (is laptop)") { Guest.controller?({ "FL_TESTBED_CONTROLLER" => "laptop" }) }
  end

  def test_windows_is_never_the_controller
    %w[mingw32 mingw-ucrt mswin64 cygwin].each { |os| assert_equal ["Ansible does not run on Windows"], Guest.find_missing(os, "x86_64", ansible: "/bin/sh") }
  end

  def test_a_mac_with_an_intel_processor_is_not_the_controller
    assert_includes Guest.find_missing("darwin22", "x86_64", ansible: "/none").first, "Intel"
  end

  def test_what_the_laptop_lacks_is_named
    Dir.mktmpdir do |folder|
      with_path(folder) do
        assert_equal ["make, bash, ssh, Python 3.11, 3.12 or 3.13 not found"], Guest.find_missing("linux-gnu", "x86_64", ansible: "/none")
        %w[make bash ssh].each { |name| program(folder, name) }
        program(folder, "python3", "exit 1") # too old
        assert_equal ["Python 3.11, 3.12 or 3.13 not found"], Guest.find_missing("darwin23", "arm64", ansible: "/none")
        program(folder, "python3.12")
        assert_empty Guest.find_missing("darwin23", "arm64", ansible: "/none")
      end
    end
  end

  def test_a_laptop_that_has_ansible_in_the_checkout_lacks_nothing
    with_path("/none") { assert_empty Guest.find_missing("linux-gnu", "x86_64", ansible: "/bin/sh") }
  end

  # -- the checkout

  def test_what_git_ignores_is_not_copied
    lines = File.readlines(File.join(ROOT, ".gitignore"), chomp: true).reject { |line| line.empty? || line.start_with?("#") }
    assert_operator lines.length, :>, 10
    (lines - ["/inventory/lab*.yml"]).each do |line|
      anchored = line.start_with?("/")
      name = line.delete_prefix("/").delete_suffix("/").sub("*", "x")
      assert Guest.excluded?(name), line
      assert Guest.excluded?("below/#{name}"), line unless anchored
    end
  end

  def test_everything_else_is_copied_and_nothing_of_the_same_name_below
    found = Guest.list(ROOT)
    %w[Makefile ansible/site.yml vagrant/controller/install inventory/hosts.yml requirements/controller.txt fl_node/__init__.py .gitignore]
      .each { |name| assert_includes found, name }
    refute(found.any? { |name| name.start_with?(".git/", ".venv/", ".vagrant/", "runs/") })
    refute Guest.excluded?("fl_node/runs")
    refute Guest.excluded?("inventory/lab.yml")
  end

  def test_settings_are_quoted_and_others_stay_on_the_laptop
    text = Guest.environment("inventory/hosts.yml", { "PIP_INDEX_URL" => "https://u:p'w@index/ x", "HOME" => "/home/me", "FL_NODE_CACHE" => "/x" })
    out, = Open3.capture2("sh", stdin_data: "#{text}printf '%s|%s' \"$ANSIBLE_INVENTORY\" \"$PIP_INDEX_URL\"")
    assert_equal "inventory/hosts.yml|https://u:p'w@index/ x", out
    refute_match(/HOME|FL_NODE_CACHE/, text)
  end

  def test_the_digest_changes_with_a_file_its_mode_and_the_machines
    digests = [[{ "a" => ["1", 0o644] }, "m"], [{ "a" => ["2", 0o644] }, "m"], [{ "a" => ["1", 0o755] }, "m"],
               [{ "b" => ["1", 0o644] }, "m"], [{ "a" => ["1", 0o644] }, "n"]].map { |files, machines| Guest.digest(files, machines) }
    assert_equal digests, digests.uniq
  end

  def send_files(home, files, machines: "m")
    File.binwrite(File.join(home, "checkout.tar.gz"), Guest.pack(files))
    out, status = Open3.capture2e({ "HOME" => home }, "sh", File.join(Guest::SCRIPTS, "receive"), "#{home}/checkout.tar.gz", "testbed", "state", machines)
    assert status.success?, out
  end

  def test_the_header_has_the_same_files_and_unchanged_ones_keep_their_time
    Dir.mktmpdir do |home|
      long = "#{"deep/" * 30}file.txt"
      send_files(home, { "run" => ["#!/bin/sh\n", 0o755], "a/b.txt" => ["old", 0o644], "gone" => ["x", 0o644], long => ["l", 0o644], ".vagrant/testbed_key" => ["k", 0o600] })
      folder = File.join(home, "testbed")
      FileUtils.mkdir_p(File.join(folder, "runs/first"))
      File.write(File.join(folder, "runs/first/report.json"), "{}")
      File.utime(1, 1, File.join(folder, "run"), File.join(folder, "a/b.txt"))
      send_files(home, { "run" => ["#!/bin/sh\n", 0o755], "a/b.txt" => ["new", 0o644], long => ["l", 0o644], ".vagrant/testbed_key" => ["k", 0o600] })
      assert_equal ["new", "l"], [File.read("#{folder}/a/b.txt"), File.read("#{folder}/#{long}")]
      assert_equal [0o755, 0o600], %w[run .vagrant/testbed_key].map { |name| File.stat("#{folder}/#{name}").mode & 0o777 }
      assert_equal 1, File.mtime("#{folder}/run").to_i
      assert_operator File.mtime("#{folder}/a/b.txt").to_i, :>, 1
      refute File.exist?("#{folder}/gone")
      assert File.exist?("#{folder}/runs/first/report.json")
      assert_equal "state\n", File.read("#{folder}/.vagrant/sent")
    end
  end

  def test_a_new_machine_makes_the_header_forget_host_keys
    Dir.mktmpdir do |home|
      send_files(home, { "a" => ["1", 0o644] })
      known = File.join(home, "testbed/.vagrant/known_hosts")
      File.write(known, "key")
      send_files(home, { "a" => ["2", 0o644] })
      assert File.exist?(known)
      send_files(home, { "a" => ["2", 0o644] }, machines: "others")
      refute File.exist?(known)
    end
  end

  def test_a_file_whose_name_the_header_can_not_have_is_named
    ["plans/a\nb.toml", "data/#{'z' * 120}"].each do |name|
      assert_fails("#{name.inspect}: to be copied to the header, a name should have one line") { Guest.pack({ name => ["", 0o644] }) }
    end
    name = "data/übung #{'z' * 88}"
    packed = StringIO.new(Guest.pack({ name => ["x", 0o644] }))
    assert_equal name.b, Gem::Package::TarReader.new(Zlib::GzipReader.new(packed)).first.full_name.b
  end

  # -- reports

  def test_new_files_of_runs_come_back_and_none_a_second_time
    Dir.mktmpdir do |root|
      there, here = %w[there here].map { |name| File.join(root, name).tap { |folder| FileUtils.mkdir_p(folder) } }
      FileUtils.mkdir_p(["#{there}/vagrant/controller", "#{there}/runs/a run", "#{there}/.vagrant"])
      FileUtils.cp(File.join(Guest::SCRIPTS, "new_runs"), "#{there}/vagrant/controller")
      new_runs = -> { system("sh", "#{there}/vagrant/controller/new_runs", "#{root}/runs.tar.gz") }
      refute new_runs.call
      FileUtils.mkdir_p("#{there}/runs/first")
      File.binwrite("#{there}/runs/first/report.html", "\xFF\r\n".b)
      assert new_runs.call
      assert_equal ["runs/first/report.html"], Guest.unpack(File.binread("#{root}/runs.tar.gz"), here)
      assert_equal "\xFF\r\n".b, File.binread("#{here}/runs/first/report.html")
      assert new_runs.call, "it is new until it has arrived"
      File.rename("#{there}/.vagrant/fetching", "#{there}/.vagrant/fetched")
      refute new_runs.call
    end
  end

  def test_a_header_can_write_nothing_but_runs
    Dir.mktmpdir do |root|
      ["../evil", "runs/../../evil", "/etc/evil", "vagrant/testbed.rb", "runs/a/.bashrc", "runs/a\\..\\b", "runs/C:evil"].each do |name|
        archive = Guest.pack({ name => ["x", 0o644] })
        assert_fails("should be below runs/") { Guest.unpack(archive, root) }
      end
      assert_empty Dir.children(root)
    end
  end

  # -- the command on the header

  def testbed(*arguments)
    Dir.mktmpdir do |home|
      FileUtils.mkdir_p(["#{home}/vagrant/controller", "#{home}/.venv/bin", "#{home}/.vagrant", "#{home}/ansible/scenarios"])
      FileUtils.cp(File.join(Guest::SCRIPTS, "testbed"), "#{home}/vagrant/controller", preserve: true)
      File.write("#{home}/.vagrant/environment", Guest.environment("inventory/x.yml", {}))
      File.write("#{home}/ansible/scenarios/learner-killed.yml", "")
      program("#{home}/.venv/bin", "ansible-playbook", 'printf "%s|" "$ANSIBLE_INVENTORY" "$FL_TESTBED_CONTROLLER" "$@"; exit 7')
      File.symlink("#{home}/vagrant/controller/testbed", "#{home}/command")
      out, status = Open3.capture2e("#{home}/command", *arguments, chdir: "/")
      return [out, status.exitstatus]
    end
  end

  def test_a_command_is_a_playbook_with_the_inventory_and_its_exit_code
    assert_equal ["inventory/x.yml|guest|ansible/train.yml|-e|fl_plan=a b.toml|", 7], testbed("train", "-e", "fl_plan=a b.toml")
    assert_equal ["inventory/x.yml|guest|ansible/site.yml|", 7], testbed("site")
    assert_equal ["inventory/x.yml|guest|ansible/scenario.yml|-e|fl_scenario=learner-killed|-e|fl_data=digits|", 7],
                 testbed("scenario", "learner-killed", "-e", "fl_data=digits")
  end

  def test_a_wrong_command_shows_the_right_ones
    assert_equal 2, testbed("trian").last
    assert_includes testbed.first, "scenario NAME"
    assert_equal ["testbed: which scenario? One of: learner-killed\n", 2], testbed("scenario")
    assert_equal 0, testbed("--help").last
  end

  # -- the header

  def test_the_header_is_the_host_of_the_group_headers
    found = {}
    Testbed.collect({ "testbed" => { "children" => { "learners" => { "hosts" => { "a" => nil } }, "headers" => { "hosts" => { "z" => nil } } } } }, {}, found)
    assert_equal [nil, true], [found["a"][:header], found["z"][:header]]
    assert_equal "header", Testbed.header.name
  end
end
