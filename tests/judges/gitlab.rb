# frozen_string_literal: true

# A simulated, unmodified self-managed GitLab whose Jira Connect Proxy URL
# points at the relay. It verifies with the libraries that GitLab itself uses
# (ruby-jwt, atlassian-jwt), so that the relay's tokens are judged by code that
# shares nothing with it. README.md lists the options and the control endpoints.

require 'atlassian/jwt'
require 'cgi'
require 'json'
require 'jwt'
require 'net/http'
require 'openssl'
require 'optparse'
require 'uri'
require 'webrick'
require_relative 'gitlab/jira_client'
require_relative 'gitlab/toolchain'

Settings = Struct.new(:proxy_url, :relative_root, :listen, :external_host, :http, keyword_init: true)

# Protocol: GitLab append_path: exactly one slash between the parts, the first
# one's path kept.
def append_path(base, path)
  "#{base.delete_suffix('/')}/#{path.delete_prefix('/')}"
end

def blank?(value)
  value.nil? || value.to_s.strip.empty?
end

# An answer other than 200, and why.
class Refused < StandardError
  attr_reader :status

  def initialize(status, reason)
    @status = status
    super(reason)
  end
end

# What GitLab's controllers see of a request.
class Call
  attr_reader :method, :path, :query

  def initialize(request, settings)
    @request = request
    @settings = settings
    @method = request.request_method
    # WEBrick's own accessors merge leading slashes; the hash must be computed
    # over what was sent.
    @target = request.request_line.split[1]
    @path, @query = @target.split('?', 2)
  end

  def host
    @settings.external_host || @request['host'].to_s
  end

  # Rails leaves out the default port of the request's and of the resulting
  # scheme.
  def site_url
    default_ports = @settings.http ? /:80\z/ : /:(80|443)\z/
    scheme = @settings.http ? 'http' : 'https'
    "#{scheme}://#{host.sub(default_ports, '')}#{@settings.relative_root}"
  end

  # Protocol: GitLab jira_connect_base_url: Rails' host, no trailing slash, and
  # https unless gitlab.yml's enforce_jira_base_url_https is off.
  def base_url
    append_path(site_url, '/-/jira_connect')
  end

  def query_string_hash
    Atlassian::Jwt.create_query_string_hash("http://#{host}#{@target}", @method, base_url)
  end

  # Rails merges the query over the body.
  def parameters
    body_parameters.merge(parse_form(@query.to_s))
  end

  def body_parameters
    @body_parameters ||= parse_body
  end

  def content_type
    @request['content-type']&.scrub
  end

  def authorization?
    !@request['authorization'].nil?
  end

  # Protocol: GitLab app/controllers/jira_connect/application_controller.rb: the
  # parameter wins, and any scheme word will do in the header.
  def token
    parameters['jwt'] || @request['authorization']&.split(' ', 2)&.last
  end

  private

  # WEBrick answers 411 when it is asked for the body of a POST without a
  # length; GitLab's documented reachability test is exactly such a POST and
  # expects 401.
  def body
    return '' unless @request['content-length'] || @request['transfer-encoding']

    @request.body.to_s.dup.force_encoding(Encoding::UTF_8)
  end

  def parse_body
    return {} if body.empty?

    case @request['content-type'].to_s.split(';').first.to_s.strip.downcase
    when 'application/json' then parse_json(body)
    when 'application/x-www-form-urlencoded', '' then parse_form(body)
    else {}
    end
  end

  def parse_json(text)
    raise Refused.new(400, 'body is not UTF-8') unless text.valid_encoding?

    fields = JSON.parse(text)
    # Half a surrogate pair gets through the parser, and could not be shown.
    JSON.generate(fields)
    fields.is_a?(Hash) ? fields : {}
  rescue JSON::JSONError
    raise Refused.new(400, 'body is not JSON')
  end

  def parse_form(text)
    fields = URI.decode_www_form(text).to_h
    return fields if fields.flatten.all?(&:valid_encoding?)

    raise Refused.new(400, 'parameters are not UTF-8')
  rescue ArgumentError
    raise Refused.new(400, 'parameters are malformed')
  end
end

# Protocol: GitLab lib/atlassian/jira_connect/jwt/asymmetric.rb.
class AsymmetricToken
  # Newer versions accept more; this is the only form that all accept.
  KEY_ID = /\A[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\z/

  def initialize(token, proxy_url)
    @token = token
    @proxy_url = proxy_url
  end

  def unverified_claims
    unverified.first
  end

  def unverified_kid
    unverified.last['kid']
  end

  def verify(audience:, issuer:, query_string_hash:)
    # ruby-jwt skips the issuer check when issuer is nil, that is when the body
    # has no clientKey; so does GitLab.
    claims, = JWT.decode(@token, public_key, true,
                         aud: audience, verify_aud: true,
                         iss: issuer, verify_iss: true,
                         algorithm: 'RS256')
    return claims if claims['qsh'] == query_string_hash

    raise Refused.new(401, "qsh is not #{query_string_hash}")
  rescue JWT::DecodeError, OpenSSL::PKey::PKeyError => e
    raise Refused.new(401, "#{e.class}: #{e.message}")
  end

  private

  def unverified
    @unverified ||= JWT.decode(@token, nil, false)
  end

  def public_key
    kid = unverified_kid
    raise Refused.new(401, 'kid is not a lowercase UUID') unless kid.is_a?(String) && kid.match?(KEY_ID)

    text = fetch(URI("#{append_path(@proxy_url, '/-/jira_connect/public_keys')}/#{kid}"))
    raise Refused.new(401, 'key is blank') if blank?(text)

    OpenSSL::PKey.read(text)
  end

  # GitLab looks at neither the status nor the content type. Time-outs are
  # those of its HTTP client. The nil keeps proxies of the environment out.
  def fetch(url)
    Net::HTTP.start(url.host, url.port, nil, use_ssl: url.scheme == 'https',
                                             open_timeout: 10, read_timeout: 20) do |http|
      http.get(url.request_uri).body
    end
  rescue SystemCallError, SocketError, IOError, Timeout::Error, OpenSSL::SSL::SSLError, Net::ProtocolError => e
    raise Refused.new(401, "key fetch failed: #{e.class}: #{e.message}")
  end
end

# What the instance remembers, and how it is told to behave.
class Instance
  MAX_EVENTS = 1000
  # Longer than any peer waits, yet no thread is lost for good.
  MAX_HANG_S = 120
  FORCED_STATUS = { 'error500' => 500, 'unauthorized' => 401, 'unprocessable' => 422 }.freeze
  MODES = ['ok', *FORCED_STATUS.keys, 'hang'].freeze
  TOOLCHAIN_MODES = %w[ok slow error500].freeze

  def initialize
    @lock = Mutex.new
    @mode_changed = ConditionVariable.new
    @mode = 'ok'
    @toolchain_mode = { mode: 'ok', delay_s: 0 }
    @installations = {}
    @events = []
    @toolchain = []
  end

  def state
    @lock.synchronize { JSON.generate(installations: @installations, events: @events, toolchain: @toolchain) }
  end

  def mode
    @lock.synchronize { @mode }
  end

  def mode=(mode)
    @lock.synchronize do
      @mode = mode
      @mode_changed.broadcast
    end
  end

  def toolchain_mode
    @lock.synchronize { @toolchain_mode }
  end

  def set_toolchain_mode(mode, delay_ms)
    @lock.synchronize { @toolchain_mode = { mode: mode, delay_s: mode == 'slow' ? delay_ms / 1000.0 : 0 } }
  end

  def record_toolchain(call)
    @lock.synchronize do
      @toolchain << call
      @toolchain.shift if @toolchain.size > MAX_EVENTS
    end
  end

  def wait_while_hanging
    deadline = now + MAX_HANG_S
    @lock.synchronize do
      @mode_changed.wait(@lock, deadline - now) while @mode == 'hang' && now < deadline
    end
  end

  # A copy, because an event may change it meanwhile; nil if there is none.
  def installation(client_key)
    @lock.synchronize { @installations[client_key]&.dup }
  end

  # Without a proof, unlike an event.
  def install(client_key, shared_secret, base_url)
    @lock.synchronize { @installations[client_key] = { shared_secret: shared_secret, base_url: base_url } }
  end

  # The change and its record become visible together. The block gets the
  # installations, and returns the status and the reason.
  def apply(event)
    @lock.synchronize do
      status, reason = yield @installations
      # Error texts quote what was sent, whatever bytes that were.
      @events << event.merge(status: status, reason: reason.dup.force_encoding(Encoding::UTF_8).scrub)
      @events.shift if @events.size > MAX_EVENTS
      status
    end
  end

  def record(event, status, reason)
    apply(event) { [status, reason] }
  end

  private

  def now
    Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end

# One request to one answer: [status, body or nil, content type or nil].
class Routes
  MAX_TOKEN_BYTES = 8192

  def initialize(settings, instance)
    @settings = settings
    @instance = instance
    @toolchain = Toolchain.new
    @base = append_path(settings.relative_root, '/-/jira_connect')
  end

  def answer(call)
    case [call.method, call.path]
    when ['POST', "#{@base}/events/installed"] then lifecycle(call, :installed)
    when ['POST', "#{@base}/events/uninstalled"] then lifecycle(call, :uninstalled)
    when ['GET', "#{@base}/installations"] then installations(call)
    when ['GET', "#{@base}/oauth_application_id"] then [200, JSON.generate(application_id: 'judge')]
    when ['GET', "#{@base}/workspaces/search"],
         ['GET', "#{@base}/repositories/search"],
         ['POST', "#{@base}/repositories/associate"] then toolchain(call)
    when ['GET', "#{@base}/branches/new"] then new_branch(call)
    else judge(call)
    end
  end

  private

  def judge(call)
    case [call.method, call.path]
    when ['GET', '/_judge/state'] then [200, @instance.state]
    when ['POST', '/_judge/mode'] then control(call) { |fields| change_mode(fields) }
    when ['POST', '/_judge/install'] then control(call) { |fields| install_directly(fields) }
    when ['POST', '/_judge/projects'] then control(call) { |fields| replace_projects(fields) }
    when ['POST', '/_judge/send'] then control(call) { |fields| send_to_jira(call, fields) }
    else [404, nil]
    end
  end

  def lifecycle(call, name)
    event = describe(call, name)
    mode = @instance.mode
    return hang(event) if mode == 'hang'

    forced = Instance::FORCED_STATUS[mode]
    return [@instance.record(event, forced, "mode #{mode}"), nil] if forced

    [handle(call, name, event), nil]
  end

  # Recorded on arrival, so that a test can see that the relay is waiting.
  def hang(event)
    @instance.record(event, nil, 'mode hang')
    @instance.wait_while_hanging
    [504, nil]
  end

  def handle(call, name, event)
    claims = authenticate(call)
    fields = scalars(call.parameters)
    @instance.apply(event) do |installations|
      name == :installed ? install(installations, claims['iss'], fields) : uninstall(installations, claims['iss'])
    end
  rescue Refused => e
    @instance.record(event, e.status, e.message)
  rescue StandardError => e
    @instance.record(event, 500, "#{e.class}: #{e.message}")
  end

  # Protocol: GitLab app/controllers/jira_connect/events_controller.rb. The size
  # is looked at before anything else.
  def authenticate(call)
    token = call.token
    raise Refused.new(401, 'no token') if blank?(token)
    raise Refused.new(401, "token exceeds #{MAX_TOKEN_BYTES} bytes") if token.to_s.bytesize > MAX_TOKEN_BYTES

    AsymmetricToken.new(token.to_s, @settings.proxy_url).verify(
      audience: call.base_url,
      issuer: scalars(call.parameters)['clientKey'],
      query_string_hash: call.query_string_hash
    )
  end

  # The record is found by the proven issuer; only a new one takes its key from
  # the body. A known one is overwritten without proof of the old secret.
  def install(installations, issuer, fields)
    client_key = installations.key?(issuer) ? issuer : fields['clientKey']
    { 'clientKey' => client_key, 'sharedSecret' => fields['sharedSecret'], 'baseUrl' => fields['baseUrl'] }
      .each { |field, value| return [422, "#{field} is blank"] if blank?(value) }

    installations[client_key] = { shared_secret: fields['sharedSecret'], base_url: fields['baseUrl'] }
    [200, 'ok']
  end

  # Protocol: GitLab destroy_service.rb calls a method of the installation
  # without a look whether there is one.
  def uninstall(installations, issuer)
    installations.delete(issuer) ? [200, 'ok'] : [500, 'unknown clientKey']
  end

  # Protocol: GitLab app/controllers/jira_connect/application_controller.rb: the
  # issuer names the secret; no qsh check on these routes; exp and nbf count
  # only if present, as ruby-jwt does. The block gets the proven clientKey.
  def symmetric(call)
    token = call.token
    raise Refused.new(403, 'no token') if blank?(token)
    raise Refused.new(403, "token exceeds #{MAX_TOKEN_BYTES} bytes") if token.to_s.bytesize > MAX_TOKEN_BYTES

    unverified_claims, = Atlassian::Jwt.decode(token.to_s, nil, false)
    installation = @instance.installation(unverified_claims['iss'])
    raise Refused.new(403, 'unknown issuer') unless installation

    Atlassian::Jwt.decode(token.to_s, installation[:shared_secret])
    yield unverified_claims['iss']
  rescue JWT::DecodeError => e
    raise Refused.new(403, "#{e.class}: #{e.message}")
  end

  # Protocol: GitLab app/controllers/jira_connect/installations_controller.rb.
  def installations(call)
    symmetric(call) { [200, JSON.generate(gitlab_com: true, instance_url: nil)] }
  rescue Refused => e
    [e.status, nil]
  end

  def toolchain(call)
    mode, delay_s = @instance.toolchain_mode.values_at(:mode, :delay_s)
    sleep(delay_s)
    return tell_toolchain(call, nil, [500, nil], 'mode error500') if mode == 'error500'

    symmetric(call) { |client_key| tell_toolchain(call, client_key, search(call), 'ok') }
  rescue Refused => e
    tell_toolchain(call, nil, [e.status, nil], e.message)
  end

  # Protocol: GitLab workspaces_controller.rb, repositories_controller.rb.
  def search(call)
    case call.path
    when %r{/workspaces/search\z} then [200, JSON.generate(@toolchain.workspaces(call.parameters))]
    when %r{/repositories/search\z} then [200, JSON.generate(@toolchain.repositories(call.parameters, call.site_url))]
    else
      found = @toolchain.associate(call.parameters, call.site_url)
      found ? [200, JSON.generate(found)] : [404, JSON.generate(error: 'Repository not found.')]
    end
  end

  def tell_toolchain(call, client_key, answer, reason)
    @instance.record_toolchain(method: call.method, path: call.path, client_key: client_key, status: answer.first,
                               reason: reason.dup.force_encoding(Encoding::UTF_8).scrub,
                               parameters: without_token(call))
    answer
  end

  def without_token(call)
    call.parameters.except('jwt')
  rescue Refused
    nil
  end

  # The echo shows a test what the relay let through.
  def new_branch(call)
    query = call.query.to_s.dup.force_encoding(Encoding::UTF_8).scrub
    [200, "<!doctype html><title>New branch</title><pre>#{CGI.escapeHTML(query)}</pre>", 'text/html; charset=utf-8']
  end

  # The calls of the tests: mistakes in them are answered in words.
  def control(call)
    yield call.body_parameters
  rescue Refused => e
    [e.status, JSON.generate(error: e.message)]
  rescue ArgumentError, TypeError, URI::Error => e
    [400, JSON.generate(error: e.message)]
  end

  def change_mode(fields)
    mode, toolchain = fields.values_at('mode', 'toolchain')
    check_mode('mode', mode, Instance::MODES) if mode || !toolchain
    check_mode('toolchain', toolchain, Instance::TOOLCHAIN_MODES) if toolchain

    @instance.mode = mode if mode
    @instance.set_toolchain_mode(toolchain, Integer(fields['delay_ms'] || 0)) if toolchain
    [200, JSON.generate({ mode: mode, toolchain: toolchain }.compact)]
  end

  def check_mode(name, mode, known)
    raise ArgumentError, "#{name} is none of #{known.join(', ')}" unless known.include?(mode)
  end

  def install_directly(fields)
    record = fields.values_at('client_key', 'shared_secret', 'base_url')
    raise ArgumentError, 'client_key, shared_secret or base_url is missing' unless record.all?(String)

    @instance.install(*record)
    [200, JSON.generate(client_key: record.first)]
  end

  def replace_projects(fields)
    @toolchain.projects = fields['projects']
    [200, JSON.generate(projects: fields['projects'].size)]
  end

  def send_to_jira(call, fields)
    installation = @instance.installation(fields['client_key'])
    raise Refused.new(404, 'unknown client_key') unless installation

    name = fields['call']
    raise ArgumentError, "call is none of #{JiraClient::CALLS.join(', ')}" unless JiraClient::CALLS.include?(name)

    client = JiraClient.new(base_url: installation[:base_url], secret: fields['secret'] || installation[:shared_secret],
                            app_key: app_key(@settings.proxy_url), site_url: call.site_url)
    [200, JSON.generate(client.call(name, fields))]
  end

  # Everything in it is unproven: it says what was sent, also when refused.
  def describe(call, name)
    event = { event: name, client_key: nil, status: nil, reason: nil, kid: nil, claims: nil,
              content_type: call.content_type, body_keys: [], authorization: call.authorization? }
    event.merge!(client_key: scalars(call.parameters)['clientKey'], body_keys: call.body_parameters.keys)
    token = AsymmetricToken.new(call.token.to_s, nil)
    event.merge(printable(kid: token.unverified_kid, claims: token.unverified_claims))
  rescue StandardError
    event
  end

  # Rails' strong parameters let no nested values through.
  def scalars(fields)
    fields.reject { |_, value| value.is_a?(Hash) || value.is_a?(Array) }
  end

  # A token can hold bytes that are no UTF-8, which the state could not show.
  def printable(fields)
    JSON.generate(fields)
    fields
  end
end

class Servlet < WEBrick::HTTPServlet::AbstractServlet
  def initialize(server, settings, routes)
    super(server)
    @settings = settings
    @routes = routes
  end

  def service(request, response)
    status, body, content_type = @routes.answer(Call.new(request, @settings))
    response.status = status
    response.body = body.to_s
    response['content-type'] = content_type || 'application/json; charset=utf-8' if body
  end
end

def parse_options(arguments)
  settings = Settings.new(relative_root: '', listen: '127.0.0.1:0', http: false)
  parser = OptionParser.new do |options|
    options.on('--proxy-url URL', 'the jira_connect_proxy_url setting') { |v| settings.proxy_url = v }
    options.on('--relative-root PATH', 'sub-path of the instance') do |v|
      settings.relative_root = append_path('', v).delete_suffix('/')
    end
    options.on('--listen ADDRESS:PORT', 'default 127.0.0.1:0') do |v|
      raise OptionParser::InvalidArgument unless v.match?(/.:\d+\z/)

      settings.listen = v
    end
    options.on('--external-host HOST[:PORT]', 'host that Rails sees, instead of the Host header') do |v|
      settings.external_host = v
    end
    options.on('--http', 'expect http in the audience (enforce_jira_base_url_https: false)') { settings.http = true }
  end
  parser.parse!(arguments)
  raise OptionParser::MissingArgument, '--proxy-url' if blank?(settings.proxy_url)
  raise OptionParser::NeedlessArgument, arguments.first unless arguments.empty?

  settings
rescue OptionParser::ParseError => e
  abort "#{e.message}\n#{parser}"
end

settings = parse_options(ARGV)
address, _, port = settings.listen.rpartition(':')
server = WEBrick::HTTPServer.new(
  BindAddress: address.delete('[]'),
  Port: Integer(port),
  DoNotReverseLookup: true,
  # Hanging calls hold a thread each, and the control endpoints must still answer.
  MaxClients: 1024,
  Logger: WEBrick::Log.new($stderr, WEBrick::BasicLog::FATAL),
  AccessLog: []
)
server.mount('/', Servlet, settings, Routes.new(settings, Instance.new))

stop = Thread::Queue.new
%w[TERM INT].each { |signal| trap(signal) { stop << signal } }

# The test holds the other end of stdin: when it dies, however it dies, this ends.
Thread.new do
  loop { $stdin.readpartial(4096) }
rescue IOError, SystemCallError
  stop << :end_of_input
end

serving = Thread.new { server.start }
$stdout.puts JSON.generate(ready: true, url: "http://#{address}:#{server.listeners.first.addr[1]}#{settings.relative_root}")
$stdout.flush

stop.pop
server.shutdown
# A hanging call may hold its thread for long; nothing here is worth the wait.
serving.join(1)
exit!(0)
