# frozen_string_literal: true

require 'atlassian/jwt'
require 'json'
require 'net/http'
require 'uri'
require_relative 'payloads'

# Protocol: GitLab lib/atlassian/jira_connect.rb: a prefix, host name and path of
# the proxy URL, cut.
def app_key(proxy_url)
  uri = URI(proxy_url)
  "gitlab-jira-connect-#{uri.hostname}#{uri.path}"[0, 64]
end

# What becomes of an answer inside an older GitLab (15.7 to 19.1). An
# exception there fails the job, which Sidekiq runs again; everything else is
# logged and forgotten.
module OlderGitlab
  REJECTIONS = { 'builds' => 'rejectedBuilds', 'deployments' => 'rejectedDeployments',
                 'feature_flags' => 'failedFeatureFlags' }.freeze

  module_function

  def digests?(call, status, content_type, body)
    if REJECTIONS.key?(call) then store(call, status, parse(content_type, body))
    elsif call == 'user' then status == 200 && parse(content_type, body).fetch('groups', {})
    else development_information(status, content_type, body)
    end
    true
  rescue StandardError
    false
  end

  # HTTParty's parser goes by the content type, and an empty body is nil.
  def parse(content_type, body)
    return nil if body.nil? || body.strip.empty?

    content_type.to_s.match?(/json/) ? JSON.parse(body) : body
  end

  def store(call, status, data)
    case status
    when 200, 202 then rejections(call, data[REJECTIONS[call]])
    when 400, 413 then data.map { |error| error['message'] }
    end
  end

  def rejections(call, rejected)
    return if rejected.nil? || rejected.empty?
    return rejected.flat_map { |_, errors| errors.map { |error| error['message'] } } if call == 'feature_flags'

    rejected.flat_map { |rejection| rejection['errors'].map { |error| error['message'] } }
  end

  # A good answer is not looked into; another one is indexed by a name.
  def development_information(status, content_type, body)
    return if [200, 202].include?(status)

    parse(content_type, body)&.[]('errorMessages')
  end
end

# Protocol: GitLab lib/atlassian/jira_connect/client.rb: one connection and one
# fresh token per call.
class JiraClient
  POSTS = { 'devinfo' => '/rest/devinfo/0.10/bulk', 'builds' => '/rest/builds/0.1/bulk',
            'deployments' => '/rest/deployments/0.1/bulk', 'feature_flags' => '/rest/featureflags/0.1/bulk' }.freeze
  CALLS = [*POSTS.keys, 'branch_delete', 'user'].freeze
  FAILURES = [SystemCallError, SocketError, IOError, Timeout::Error, OpenSSL::SSL::SSLError, Net::ProtocolError,
              Net::HTTPBadResponse, Net::HTTPHeaderSyntaxError].freeze

  def initialize(base_url:, secret:, app_key:, site_url:)
    @base_url = base_url
    @secret = secret
    @app_key = app_key
    @site_url = site_url
  end

  # {status, headers, body, error, gitlab_ok, sent}
  def call(name, options)
    request = build(name, options)
    outcome(name, request).merge(sent: describe(request))
  end

  private

  def outcome(name, request)
    response = perform(request)
    status = response.code.to_i
    { status: status, headers: response.each_header.to_h, body: readable(response.body), error: nil,
      gitlab_ok: OlderGitlab.digests?(name, status, response['content-type'], response.body) }
  rescue *FAILURES => e
    { status: nil, headers: {}, body: nil, error: e.class.name, gitlab_ok: false }
  end

  def build(name, options)
    payloads = Payloads.new(options, @site_url)
    case name
    when 'branch_delete'
      path = "/rest/devinfo/0.10/repository/#{payloads.project_id}/branch/#{Payloads.branch_id(payloads.branch)}"
      request(Net::HTTP::Delete, path, options)
    when 'user'
      query = URI.encode_www_form(accountId: options['account_id'] || 'admin', expand: 'groups')
      request(Net::HTTP::Get, '/rest/api/3/user', options, query: query)
    else
      request(Net::HTTP::Post, POSTS.fetch(name), options, body: options['payload'] || payloads.public_send(name))
    end
  end

  def request(verb, path, options, query: nil, body: nil)
    uri = target(path, options['keep_path'])
    uri.query = query
    verb.new(uri).tap do |request|
      request['Authorization'] = "JWT #{token(uri, verb::METHOD)}"
      request['Content-Type'] = 'application/json'
      request['Accept'] = 'application/json'
      request.body = body.is_a?(String) ? body : JSON.generate(body) if body
    end
  end

  # Protocol: GitLab up to about 19.1 loses the path of the base URL.
  def target(path, keep_path)
    keep_path ? URI("#{@base_url.delete_suffix('/')}#{path}") : URI.join(@base_url, path)
  end

  # Protocol: GitLab client.rb: iss, iat, exp = iat + 60 and qsh; the header has
  # nothing but alg.
  def token(uri, method)
    issued_at = Time.now.to_i
    claims = { iss: @app_key, iat: issued_at, exp: issued_at + 60,
               qsh: Atlassian::Jwt.create_query_string_hash(uri, method, @base_url) }
    Atlassian::Jwt.encode(claims, @secret)
  end

  # Time-outs are those of GitLab's HTTP client. The nil keeps proxies of the
  # environment out. Net::HTTP would repeat a GET or DELETE by itself, and so
  # hide that the first one failed.
  def perform(request)
    uri = request.uri
    Net::HTTP.start(uri.host, uri.port, nil, use_ssl: uri.scheme == 'https', open_timeout: 10, read_timeout: 20,
                                             max_retries: 0) { |http| http.request(request) }
  end

  def describe(request)
    { method: request.method, url: request.uri.to_s, token: request['Authorization'].delete_prefix('JWT '),
      body: readable(request.body) }
  end

  def readable(text)
    return nil if text.nil? || text.empty?

    text = text.dup.force_encoding(Encoding::UTF_8).scrub
    value = JSON.parse(text)
    JSON.generate(value)
    value
  rescue JSON::JSONError
    text
  end
end
