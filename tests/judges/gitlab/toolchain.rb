# frozen_string_literal: true

require 'time'

# Protocol: GitLab workspaces_controller.rb, repositories_controller.rb: the lists
# that Jira's "connect a repository" asks for, over projects that a test may set.
class Toolchain
  DEFAULT_LIMIT = 20
  DEFAULT_PROJECTS = [
    { 'id' => 42, 'name' => 'Roof', 'group' => { 'id' => 4, 'name' => 'House' } },
    { 'id' => 43, 'name' => 'Cellar', 'group' => { 'id' => 4, 'name' => 'House' } },
    { 'id' => 44, 'name' => 'Pond', 'group' => { 'id' => 5, 'name' => 'Garden' } }
  ].freeze

  def initialize
    @projects = DEFAULT_PROJECTS
    @updated_at = Time.now.utc
  end

  def projects=(projects)
    raise ArgumentError, 'projects is no list of {id, name, group: {id, name}}' unless valid?(projects)

    @projects = projects
  end

  # Unpaginated, unlike the repositories.
  def workspaces(parameters)
    groups = @projects.map { |project| project['group'] }.uniq { |group| group['id'] }
    { workspaces: matching(groups, parameters).map { |group| workspace(group) } }
  end

  def repositories(parameters, site_url)
    page = positive(parameters['page'], 1)
    limit = positive(parameters['limit'], DEFAULT_LIMIT)
    found = matching(@projects, parameters).drop((page - 1) * limit).first(limit)
    { containers: found.map { |project| container(project, site_url) } }
  end

  # nil when there is none.
  def associate(parameters, site_url)
    project = @projects.find { |known| known['id'].to_s == parameters['id'].to_s }
    project && container(project, site_url)
  end

  private

  def valid?(projects)
    projects.is_a?(Array) && projects.all? do |project|
      project.is_a?(Hash) && [project, project['group']].all? do |entity|
        entity.is_a?(Hash) && entity['id'].is_a?(Integer) && entity['name'].is_a?(String)
      end
    end
  end

  def matching(entities, parameters)
    wanted = parameters['searchQuery'].to_s.downcase
    entities.select { |entity| entity['name'].downcase.include?(wanted) }
  end

  def positive(text, default)
    number = text.to_s.to_i
    number.positive? ? number : default
  end

  # Protocol: GitLab workspace_entity.rb: ids are integers.
  def workspace(group)
    { id: group['id'], name: group['name'], avatarUrl: nil }
  end

  def container(project, site_url)
    { id: project['id'], name: project['name'], url: "#{site_url}/group-#{project['group']['id']}/#{project['id']}",
      avatarUrl: nil, lastUpdatedDate: @updated_at.iso8601(3), updateSequenceId: (@updated_at.to_f * 1000).round,
      workspace: workspace(project['group']) }
  end
end
