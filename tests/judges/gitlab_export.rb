# frozen_string_literal: true

# What `\copy jira_connect_installations to ... csv header` gives on a GitLab, with secrets that the gem which GitLab
# itself uses has encrypted: {db_key_base, rows: [{client_key, shared_secret, base_url, display_url, instance_url}]}
# on stdin, CSV on stdout. `binary` writes the encrypted columns as bytea.

require 'attr_encrypted'
require 'csv'
require 'json'

COLUMNS = %w[id client_key encrypted_shared_secret encrypted_shared_secret_iv base_url display_url instance_url].freeze

# The options of GitLab's JiraConnectInstallation; ActiveRecord switches the encoding on by itself.
class Installation
  extend AttrEncrypted

  attr_accessor :db_key_base

  attr_encrypted :shared_secret, mode: :per_attribute_iv, algorithm: 'aes-256-gcm', key: :db_key_base_32,
                                 encode: true, encode_iv: true

  # Settings.attr_encrypted_db_key_base_32, for a key of ASCII.
  def db_key_base_32
    db_key_base[0, 32].ljust(32, '0')
  end
end

input = JSON.parse($stdin.read)
puts COLUMNS.to_csv
input['rows'].each.with_index(1) do |row, id|
  record = Installation.new
  record.db_key_base = row['db_key_base'] || input['db_key_base']
  record.shared_secret = row['shared_secret']
  sealed = [record.encrypted_shared_secret, record.encrypted_shared_secret_iv]
  sealed.map! { |text| "\\x#{text.unpack1('m').unpack1('H*')}" } if input['binary']
  puts [id, row['client_key'], *sealed, row['base_url'], row['display_url'], row['instance_url']].to_csv
end
