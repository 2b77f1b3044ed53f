-- One provider's limits in Redis, changed by a whole batch at once: what `apply` of processor/bucket.py does.
-- KEYS[1] the document
-- ARGV[1] operations; [2] the document's birth as the caller knows it, or ""; [3] a name for a new birth; [4] guard, ms;
--         [5] now, ms, or "" for the server's time (tests only); [6] the newest version that the caller knows
-- The answer is JSON: {birth, results, version}, or {} where the document that the caller knows is lost.

local ops = cjson.decode(ARGV[1])
local raw = redis.call('GET', KEYS[1])
local doc = raw and cjson.decode(raw) or {birth = ARGV[3], newest = 0, windows = {}, holds = {}}
doc.words = doc.words or {}
if ARGV[2] ~= '' and doc.birth ~= ARGV[2] then
  return '{}'
end
doc.version = doc.version or 0
if doc.version < tonumber(ARGV[6]) then
  -- An older copy came back. All who know this birth shall tell again what they were granted, in place of its counts.
  doc.birth, doc.windows = ARGV[3], {}
  redis.call('SET', KEYS[1], cjson.encode(doc), 'KEEPTTL')
  return '{}'
end

local now = tonumber(ARGV[5])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
-- A clock that was set back goes on from the newest time at its own pace, until it has caught up by itself.
doc.ahead = now < doc.newest and math.max(doc.ahead or 0, doc.newest - now) or 0
now = now + doc.ahead
doc.newest = now
local guard = tonumber(ARGV[4])

-- A window: {width of a slot, how long a slot counts after its end, {slot, amount, slot, amount ...}}, oldest first.
local function ends(window, slot)
  return (slot + 1) * window[1] + window[2]
end

local function used(window)
  local sum = 0
  for i = 2, #window[3], 2 do
    sum = sum + window[3][i]
  end
  return sum
end

local function add(place, width, kept, at, amount)
  local window = doc.windows[place] or {width, kept, {}}
  local slots = window[3]
  local slot = math.floor(math.min(at, now + guard) / width)
  if ends(window, slot) <= now then
    return
  end
  local i = #slots - 1
  while i > 0 and slots[i] > slot do
    i = i - 2
  end
  if i < 1 or slots[i] ~= slot then
    i = i < 1 and 1 or i + 2
    table.insert(slots, i, 0)
    table.insert(slots, i, slot)
  end
  slots[i + 1] = math.max(0, slots[i + 1] + amount)
  if slots[i + 1] == 0 then
    table.remove(slots, i)
    table.remove(slots, i)
  end
  doc.windows[place] = #slots > 0 and window or nil
end

local function free_at(window, amount, cap)
  local sum, at, slots = used(window), 0, window[3]
  for i = 1, #slots, 2 do
    if sum + amount <= cap then
      break
    end
    sum = sum - slots[i + 1]
    at = ends(window, slots[i])
  end
  return at
end

-- What a vendor told: {left, at, full, gain, limit, last}, see Word.
local function told_at(word, amount)
  local missing = math.min(amount, word[5]) - word[1]
  if missing <= 0 and amount <= word[5] then
    return word[2]
  end
  if word[4] == 0 then
    return word[6]
  end
  return math.min(word[6], word[2] + math.ceil(missing * word[3] / word[4]))
end

local function told_ends(word)
  return word[4] == 0 and word[6] or told_at(word, word[5])
end

-- op: {"admit", scopes, {{scope, metric, amount, cap or -1, width, kept} ...}}
local function admit(op)
  local longest = {now, '', '', ''}
  local function consider(at, scope, cause, detail)
    if at > longest[1] then
      longest = {at, scope, cause, detail}
    end
  end
  for _, scope in ipairs(op[2]) do
    local held = doc.holds[scope]
    if held then
      consider(held[1], scope, 'held', held[2])
    end
  end
  for _, d in ipairs(op[3]) do
    local place = d[1] .. '|' .. d[2]
    local word, window = doc.words[place], doc.windows[place]
    if word then
      consider(told_at(word, d[3]), d[1], 'told', d[2])
    end
    if d[3] > 0 and d[4] >= 0 and window then
      consider(free_at(window, d[3], d[4]), d[1], 'used', d[2])
    end
  end
  if longest[1] > now then
    return {longest[1] - now, longest[2], longest[3], longest[4]}
  end
  for _, d in ipairs(op[3]) do
    local place = d[1] .. '|' .. d[2]
    if d[3] > 0 and d[4] >= 0 then
      add(place, d[5], d[6], now, d[3])
    end
    local word = doc.words[place]
    if word then
      word[1] = word[1] - d[3]
    end
  end
  return {now}
end

local live = now
for place, window in pairs(doc.windows) do
  local kept, slots = {}, window[3]
  for i = 1, #slots, 2 do
    if ends(window, slots[i]) > now then
      kept[#kept + 1] = slots[i]
      kept[#kept + 1] = slots[i + 1]
    end
  end
  window[3] = kept
  doc.windows[place] = #kept > 0 and window or nil
end
for scope, held in pairs(doc.holds) do
  doc.holds[scope] = held[1] > now and held or nil
end
for place, word in pairs(doc.words) do
  doc.words[place] = told_ends(word) > now and word or nil
end

local results = {}
for i, op in ipairs(ops) do
  results[i] = cjson.null
  if op[1] == 'admit' then
    results[i] = admit(op)
  elseif op[1] == 'record' then
    for _, e in ipairs(op[2]) do
      add(e[1] .. '|' .. e[2], e[5], e[6], e[3], e[4])
    end
    for _, e in ipairs(op[3]) do
      local word = doc.words[e[1] .. '|' .. e[2]]
      if word and e[3] >= word[2] then
        word[1] = word[1] - e[4]
      end
    end
  elseif op[1] == 'hold' then
    local held = doc.holds[op[2]]
    if op[3] > 0 and (not held or now + op[3] > held[1]) then
      doc.holds[op[2]] = {now + op[3], op[4]}
    end
  else
    local word = op[4]
    word[2], word[6] = now, now + word[6]
    doc.words[op[2] .. '|' .. op[3]] = word
  end
end

if #ops == 0 then
  return cjson.encode({doc.birth, {}})
end
for _, window in pairs(doc.windows) do
  live = math.max(live, ends(window, window[3][#window[3] - 1]))
end
for _, held in pairs(doc.holds) do
  live = math.max(live, held[1])
end
for _, word in pairs(doc.words) do
  live = math.max(live, told_ends(word))
end
doc.version = doc.version + 1
redis.call('SET', KEYS[1], cjson.encode(doc), 'PX', math.max(60000, live - now))
return cjson.encode({doc.birth, results, doc.version})
