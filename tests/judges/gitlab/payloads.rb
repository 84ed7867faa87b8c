# frozen_string_literal: true

require 'digest'
require 'time'

# The bodies that GitLab's lib/atlassian/jira_connect/serializers make, from the
# options of one POST /_judge/send. Two instances that are given the same
# options send the same ids, as two real ones do.
class Payloads
  DEFAULTS = {
    'project_id' => 42, 'issue_key' => 'ABC-1', 'version' => '17.5.1', 'title' => 'Mend the roof',
    'commits' => 1, 'branches' => 1, 'merge_requests' => 1, 'pipeline_id' => 700, 'build_number' => 7,
    'environment_id' => 30, 'deployment_number' => 3, 'flag_id' => 5, 'flag_key' => 'new-roof',
    'branch' => 'ABC-1-branch-1'
  }.freeze

  # Jira's data is scoped by project; the numbers of merge requests by instance.
  MERGE_REQUESTS_PER_PROJECT = 1000

  def self.branch_id(name)
    Digest::SHA256.hexdigest(name)
  end

  def initialize(options, site_url)
    @options = DEFAULTS.merge(options.compact)
    # Protocol: GitLab generate_update_sequence_id: milliseconds.
    @sequence = @options['sequence'] || (Time.now.to_f * 1000).round
    @project_url = "#{site_url}/group/project-#{project_id}"
    @time = Time.now.utc.iso8601
  end

  def project_id
    @options['project_id']
  end

  def branch
    @options['branch']
  end

  def devinfo
    with_metadata(repositories: [repository])
  end

  def builds
    with_metadata(builds: [build])
  end

  def deployments
    with_metadata(deployments: [deployment])
  end

  def feature_flags
    with_metadata(flags: [flag], properties: { projectId: "project-#{project_id}" })
  end

  private

  def with_metadata(body)
    { providerMetadata: { product: "GitLab #{@options['version']}" } }.merge(body)
  end

  def issue_keys
    [@options['issue_key']]
  end

  def title
    @options['title']
  end

  def repository
    {
      id: project_id.to_s, name: "Project #{project_id}", description: 'A project', url: @project_url, avatar: nil,
      updateSequenceId: @sequence, commits: many('commits') { |i| commit(i) },
      branches: many('branches') { |i| branch_entity("#{@options['issue_key']}-branch-#{i}", i) },
      pullRequests: many('merge_requests') { |i| merge_request(i) }
    }
  end

  # A list that the event says nothing about is null, not empty.
  def many(option, &entity)
    count = Integer(@options[option])
    count.zero? ? nil : (1..count).map(&entity)
  end

  def commit(number)
    sha = Digest::SHA1.hexdigest("#{project_id} #{number}")
    {
      id: sha, issueKeys: issue_keys, hash: sha, displayId: sha[0, 8],
      message: "#{@options['issue_key']} #{title}", flags: [], author: author, fileCount: 1,
      files: [{ path: 'roof.rb', changeType: 'MODIFIED', linesAdded: 2, linesRemoved: 1,
                url: "#{@project_url}/-/blob/#{sha}/roof.rb" }],
      authorTimestamp: @time, url: "#{@project_url}/-/commit/#{sha}", updateSequenceId: @sequence
    }
  end

  def branch_entity(name, number)
    {
      id: self.class.branch_id(name), issueKeys: issue_keys, name: name, lastCommit: commit(number),
      url: "#{@project_url}/-/commits/#{name}",
      createPullRequestUrl: "#{@project_url}/-/merge_requests/new?merge_request%5Bsource_branch%5D=#{name}",
      updateSequenceId: @sequence
    }
  end

  def merge_request(number)
    source = "#{@options['issue_key']}-branch-#{number}"
    {
      id: (project_id.to_i * MERGE_REQUESTS_PER_PROJECT + number).to_s, issueKeys: issue_keys,
      displayId: "group/project-#{project_id}!#{number}", title: "#{@options['issue_key']} #{title}", author: author,
      reviewers: [{ name: 'Rita Reviewer', email: 'rita@example.com', approvalStatus: 'UNAPPROVED' }],
      commentCount: 0, sourceBranch: source, destinationBranch: 'main', lastUpdate: @time,
      status: @options['state'] || 'OPEN', sourceBranchUrl: "#{@project_url}/-/commits/#{source}",
      url: "#{@project_url}/-/merge_requests/#{number}", updateSequenceId: @sequence
    }
  end

  def author
    { name: 'Ada Author', email: 'ada@example.com', username: 'ada', url: 'https://gitlab.example/ada', avatar: nil }
  end

  def build
    {
      schemaVersion: '1.0', pipelineId: @options['pipeline_id'].to_s, buildNumber: @options['build_number'],
      updateSequenceNumber: @sequence, displayName: title, url: "#{@project_url}/-/pipelines/1",
      state: @options['state'] || 'successful', lastUpdated: @time, issueKeys: issue_keys,
      testInfo: { totalNumber: 3, numberPassed: 2, numberFailed: 1, numberSkipped: 0 },
      references: [{ commit: { id: commit(1)[:id], repositoryUri: @project_url },
                     ref: { name: 'main', uri: "#{@project_url}/-/commits/main" } }]
    }
  end

  def deployment
    {
      schemaVersion: '1.0', deploymentSequenceNumber: @options['deployment_number'], updateSequenceNumber: @sequence,
      displayName: title, description: "Deployment of project #{project_id}: #{title}",
      associations: [{ associationType: 'issueKeys', values: issue_keys }], url: "#{@project_url}/-/jobs/1",
      label: "group/project-#{project_id}-production", state: @options['state'] || 'successful', lastUpdated: @time,
      pipeline: { id: @options['pipeline_id'].to_s, displayName: 'main', url: "#{@project_url}/-/pipelines/1" },
      environment: { id: @options['environment_id'].to_s, displayName: 'production', type: 'production' }
    }
  end

  def flag
    summary = { url: "#{@project_url}/-/feature_flags/1/edit", lastUpdated: @time,
                status: { enabled: true, defaultValue: '', rollout: { text: 'All users' } } }
    {
      schemaVersion: '1.0', id: @options['flag_id'].to_s, key: @options['flag_key'], updateSequenceId: @sequence,
      displayName: title, summary: summary,
      details: [summary.merge(environment: { name: 'production', type: 'production' })], issueKeys: issue_keys
    }
  end
end
