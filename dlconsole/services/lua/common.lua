-- What the other scripts begin with; joined in front of each when it is loaded.

local CHUNK = 1000  -- arguments a call: unpack has a limit of about 8,000

-- An error where `key` exists with another type. To be asked before anything is changed: a script is
-- not rolled back.
local function expect(key, wanted)
  local found = redis.call('TYPE', key).ok
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. wanted)
  end
end

local function expect_number(key)
  local value = redis.call('GET', key)
  if value and not string.match(value, '^-?%d+$') then
    return redis.error_reply('WRONGTYPE ' .. key .. ' does not hold a number')
  end
end

-- The server's clock in ms: the only one that leases and delays are measured by.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function is_live(lease, sid, now)
  local deadline = redis.call('ZSCORE', lease, sid)
  return deadline and tonumber(deadline) > now
end

-- Redis refuses a script's commands that need memory when it has none, unless the script has written
-- already. So a script that frees memory, or that keeps a session alive which does, begins with this.
local function allow_without_memory(zset) redis.call('ZREM', zset, '') end

-- Numbers go as text with all their digits: Lua's own formatting collapses long ones.
local function renew(lease, sid, now, ttl_ms)
  redis.call('ZADD', lease, string.format('%.0f', now + ttl_ms), sid)
end

-- Whether an item is JSON, and its value, in which surrogates are spaces: a lone one, which Python writes and
-- reads, cjson refuses. An escaped backslash in front of them stays one.
local function read_item(item)
  return pcall(cjson.decode, (string.gsub(item, '\\u[dD][89a-fA-F]%x%x', '\\u0020')))
end

-- An item's deaths: the sessions that died holding it since it was last finished, by name, so that a
-- call sent twice counts once, and a session that turns out to live can be taken off again.
local function deaths_of(crash, digest)
  local names = {}
  for name in string.gmatch(redis.call('HGET', crash, digest) or '', '%S+') do names[#names + 1] = name end
  return names
end

local function position(names, name)
  for i = 1, #names do
    if names[i] == name then return i end
  end
end

-- What a session has in flight, the last claimed first: pushed to the tail in this order, the first
-- claimed is the next to be taken again. Each is {batch, index, field, item}.
local function newest_first(held)
  local items = {}
  for i = 1, #held, 2 do
    local batch, index = string.match(held[i], '^(%d+):(%d+)$')
    if batch then items[#items + 1] = {tonumber(batch), tonumber(index), held[i], held[i + 1]} end
  end
  table.sort(items, function(a, b)
    if a[1] ~= b[1] then return a[1] > b[1] end
    return a[2] > b[2]
  end)
  return items
end

-- Take n tasks that are tried again out of the count of failed ones. Those that it does not know (the
-- list is older than the counter, or of another Redis) are new here and count as fed, where that is
-- counted, so that fed = queued + in flight + delayed + stored + failed stays true.
local function no_longer_failed(failed_key, fed_key, n)
  if n == 0 then return end
  local known = math.max(0, math.min(n, tonumber(redis.call('GET', failed_key) or '0')))
  if known > 0 then redis.call('DECRBY', failed_key, known) end
  if n > known and redis.call('EXISTS', fed_key) == 1 then redis.call('INCRBY', fed_key, n - known) end
end
