# frozen_string_literal: true

# What the tests need of Vagrant where Vagrant itself does not run.
require "minitest/autorun"
require "tmpdir"

module Vagrant
  module Errors
    class VagrantError < StandardError
      def self.error_message(text)
        define_method(:message) { text }
      end
    end
  end
end

require_relative "../../vagrant/testbed"

class TestbedTest < Minitest::Test
  def assert_fails(text, &block)
    assert_includes assert_raises(Vagrant::Errors::VagrantError, &block).message, text
  end

  # Runs the block with another value of a constant of the module Testbed.
  def with(name, value)
    before = Testbed.const_get(name)
    Testbed.send(:remove_const, name)
    Testbed.const_set(name, value)
    yield
  ensure
    Testbed.send(:remove_const, name)
    Testbed.const_set(name, before)
  end
end
