// SPDX-License-Identifier: Apache-2.0
// Everything the page says, in Korean and in English.

const WORDS = {
  ko: {
    skip: "본문으로",
    tabLabel: "분류", tabFill: "빈칸 채우기", tabExperts: "전문가 지도",
    otherLanguage: "English", otherLanguageCode: "en",
    themeAuto: "화면: 자동", themeLight: "화면: 밝게", themeDark: "화면: 어둡게",
    step: "{step}스텝", parameters: "파라미터 {parameters}개",
    offline: "이 페이지와 모델은 이 서버에서만 움직이며, 바깥으로 아무것도 보내지 않습니다.",
    labelLead: "한 줄에 하나씩 적으면 줄마다 분류합니다. CSV나 텍스트 파일을 이곳에 끌어다 놓아도 됩니다.",
    task: "과제", notLearnt: "이 모델이 배우지 않은 과제라 답을 믿기 어렵습니다.",
    learnt: "배운 과제", otherTasks: "배우지 않은 과제",
    classify: "분류하기", openFile: "파일 열기…", example: "예문 넣기",
    column_document: "글", column_comments: "댓글", column_premise: "전제", column_hypothesis: "가설",
    column_sentence1: "문장 1", column_sentence2: "문장 2", column_text: "글",
    working: "계산하고 있습니다…", progress: "{total}줄 가운데 {done}줄을 마쳤습니다…", stop: "그만하기",
    done: "{lines}줄, {seconds}초", stopped: "{done}줄까지 하고 멈췄습니다.",
    nothing: "글을 한 줄 이상 적어 주세요.", noTask: "이 모델에는 분류할 과제가 없습니다. 빈칸 채우기를 써 보세요.",
    unequal: "칸마다 줄 수가 다릅니다: {counts}. 같은 줄끼리 짝이 됩니다.",
    number: "번호", text: "글", label: "답", probability: "확률", tokens: "토큰",
    sortBy: "{column} 순으로 정렬", save: "CSV로 저장", more: "{count}줄 더 보기", summary: "답의 분포",
    cut: "잘림", cutOne: "글이 너무 길어서 {tokens}토큰 중 앞의 {kept}토큰만 읽었습니다. {character}번째 글자부터는 읽지 못했습니다.",
    cutLong: "글이 {characters}자로 너무 길어서 앞의 {kept}토큰만 읽었습니다. {character}번째 글자부터는 읽지 못했습니다.",
    cutMany: "{lines}줄은 너무 길어서 뒷부분을 읽지 못했습니다. ‘잘림’ 표시가 있는 줄입니다.",
    unread: "읽지 못한 부분", perLabel: "여러 답이 함께 맞을 수 있는 과제입니다. 막대는 답마다 따로 구한 확률이라 더해도 100%가 아닙니다.",
    fileRead: "{name} 파일을 열었습니다.", fileKorean: "UTF-8이 아니어서 CP949로 읽었습니다.",
    fileBad: "{name} 파일을 읽을 수 없습니다: UTF-8, UTF-16, CP949로 된 글이 아닙니다.",
    fileQuote: "{name} 파일의 {line}번째 줄에서 연 따옴표(\")가 끝까지 닫히지 않습니다. 그 줄을 고친 뒤에 다시 열어 주세요.",
    fileLarge: "{name} 파일은 {size} MB입니다. {limit} MB까지 열 수 있습니다.",
    fileSize: "{lines}줄 · {width}열", fileEmpty: "{name} 파일에는 글이 없습니다.",
    fileColumn: "읽을 열", fileHeader: "첫 줄은 열 이름", fileLines: "{lines}줄이라 앞의 {limit}줄만 분류합니다.",
    closeFile: "파일 닫기", dropHere: "여기에 놓으세요",
    fillLead: "낱말을 골라 가리면 모델이 빈칸을 채웁니다. <extra_id_0>이라고 직접 적어도 됩니다. 한 줄이 글 하나입니다.",
    fillText: "글", hide: "고른 부분 가리기", beams: "빔", longest: "최대 토큰", fill: "채우기",
    chooseFirst: "가릴 부분을 먼저 골라 주세요. 글자를 끌거나 Shift와 화살표로 고릅니다.",
    noBlank: "빈칸이 없습니다. 낱말을 골라 가리거나 <extra_id_0>을 적어 주세요.",
    noSentinel: "<extra_id_{number}>은 없습니다. 이 모델에서는 <extra_id_0>부터 <extra_id_{last}>까지 쓸 수 있습니다.",
    unfinished: "최대 토큰에서 끊김", emptyFill: "(아무것도 없음)", shareOf: "확률 {probability}",
    answered: "빈칸을 채우지 않고 이렇게 답했습니다: ", fillRaw: "모델이 쓴 그대로", wide: "막대는 가장 높은 확률과 견준 것이고, 순서에는 답의 길이도 헤아립니다.",
    expertsLead: "글의 조각마다 어느 전문가 둘이 맡았는지 보여 줍니다. 색이 진할수록 그 전문가의 몫이 큽니다.",
    expertsText: "글", draw: "지도 그리기", withPrompt: "과제의 지시문과 함께 읽기",
    noExperts: "이 모델의 인코더에는 전문가가 없습니다.",
    layer: "인코더 {number}층", layerNote: "{name} · 전문가 {experts}명 중 {used}명이 맡음",
    pieceHelp: "조각을 누르거나 화살표로 옮겨 다니면 숫자가 보입니다.",
    detail: "‘{piece}’ → {choices}", choice: "전문가 {expert} ({weight})", entropy: "망설임(엔트로피) {entropy}/{most}",
    wouldDrop: "자리를 제한했다면 {which} 선택이 버려졌습니다", which0: "첫째", which1: "둘째", whichN: "{n}째",
    weight: "몫", dropped: "자리를 제한하면 버려짐", promptPiece: "지시문",
    capacity: "자리 제한: 글을 {rows}줄짜리 묶음({tokens}토큰, {groups}조)의 끝에 놓고 전문가마다 조별로 {places}자리만 주면, 선택 {all}개 가운데 {lost}개({share})가 버려집니다. 이 서버는 아무것도 버리지 않습니다.",
    tastes: "전문가마다 자주 맡는 조각", tastesLead: "함께 들어 있는 댓글 {comments}줄에서 셌습니다. 평균보다 자주 맡은 조각부터 보여 줍니다.",
    showTastes: "전문가마다 자주 맡는 조각 보기", taste: "전문가 {expert}", share: "몫 {share}", unused: "거의 뽑히지 않음",
    times: "{of}번 가운데 {times}번", space: "띄어쓰기", end: "글의 끝",
    cannotReach: "서버에 닿지 않습니다. 서버가 켜져 있는지 확인하고 다시 해 주세요.",
    status_cut: "서버의 답이 중간에 끊겼습니다. 다시 해 주세요.",
    status_413: "한 번에 보낼 수 있는 것보다 글이 많거나 깁니다.", status_422: "서버가 이 요청을 들어줄 수 없습니다.",
    status_429: "기다리는 요청이 많아서 서버가 더 받지 못합니다. 조금 뒤에 다시 해 주세요.",
    status_500: "서버에 문제가 생겼습니다. 서버의 기록을 확인해 주세요.",
    status_503: "서버가 바쁘거나 끝나는 중이라 답하지 못했습니다. 조금 뒤에 다시 해 주세요.",
    server: "서버의 말", where: "어디", mend: "고치려면", retry: "{seconds}초 뒤에 다시 합니다…",
  },
  en: {
    skip: "Skip to content",
    tabLabel: "Classify", tabFill: "Fill blanks", tabExperts: "Map of experts",
    otherLanguage: "한국어", otherLanguageCode: "ko",
    themeAuto: "Theme: auto", themeLight: "Theme: light", themeDark: "Theme: dark",
    step: "step {step}", parameters: "{parameters} parameters",
    offline: "Page and model run on this server alone; nothing is sent anywhere else.",
    labelLead: "One text per line; each line is classified. You can also drop a CSV or text file here.",
    task: "Task", notLearnt: "This model has not learnt this task, so do not trust its answers.",
    learnt: "Learnt", otherTasks: "Not learnt",
    classify: "Classify", openFile: "Open a file…", example: "Insert examples",
    column_document: "Text", column_comments: "Comment", column_premise: "Premise", column_hypothesis: "Hypothesis",
    column_sentence1: "Sentence 1", column_sentence2: "Sentence 2", column_text: "Text",
    working: "Computing…", progress: "{done} of {total} lines done…", stop: "Stop",
    done: "lines: {lines}, seconds: {seconds}", stopped: "Stopped; lines done: {done}.",
    nothing: "Write at least one line.", noTask: "This model has no task with labels. Try filling blanks.",
    unequal: "The boxes have different numbers of lines: {counts}. Line by line they are pairs.",
    number: "No.", text: "Text", label: "Answer", probability: "Probability", tokens: "Tokens",
    sortBy: "Sort by {column}", save: "Save as CSV", more: "Show {count} more", summary: "Answers",
    cut: "cut", cutOne: "Too long: {kept} of {tokens} tokens were read. From character {character} on it was not.",
    cutLong: "Too long, with {characters} characters: {kept} tokens were read. From character {character} on it was not.",
    cutMany: "{lines} lines were too long and not read to their end. They are marked “cut”.",
    unread: "not read", perLabel: "Several labels can be right at once. Each bar is the probability of its own label, so they do not add up to 100%.",
    fileRead: "{name} is open.", fileKorean: "It is not UTF-8 and was read as CP949.",
    fileBad: "{name} cannot be read: it is no text in UTF-8, UTF-16 or CP949.",
    fileQuote: "A quote (\") in line {line} of {name} is never closed. Mend that line and open the file again.",
    fileLarge: "{name} has {size} MB; files up to {limit} MB can be opened.",
    fileSize: "lines: {lines}, columns: {width}", fileEmpty: "There is no text in {name}.",
    fileColumn: "Column", fileHeader: "First line has names", fileLines: "{lines} lines; only the first {limit} are classified.",
    closeFile: "Close the file", dropHere: "Drop it here",
    fillLead: "Select words, hide them, and let the model fill them in. Or write <extra_id_0> yourself. Each line is one text.",
    fillText: "Text", hide: "Hide selection", beams: "Beams", longest: "Most tokens", fill: "Fill",
    chooseFirst: "First select what to hide, by dragging or with Shift and the arrow keys.",
    noBlank: "There is no blank. Select a word and hide it, or write <extra_id_0>.",
    noSentinel: "There is no <extra_id_{number}>: this model has <extra_id_0> to <extra_id_{last}>.",
    unfinished: "ended at the most tokens", emptyFill: "(nothing)", shareOf: "probability {probability}",
    answered: "It filled no blank but answered: ", fillRaw: "As the model wrote it", wide: "Bars compare with the most probable one; the order also weighs length.",
    expertsLead: "Which two experts took each piece of a text. The stronger the colour, the larger the expert's weight.",
    expertsText: "Text", draw: "Draw the map", withPrompt: "read with the task's prompt",
    noExperts: "The encoder of this model has no experts.",
    layer: "Encoder layer {number}", layerNote: "{name} · {used} of {experts} experts at work",
    pieceHelp: "Click a piece, or move with the arrow keys, to see its numbers.",
    detail: "“{piece}” → {choices}", choice: "expert {expert} ({weight})", entropy: "entropy {entropy} of at most {most}",
    wouldDrop: "with limited places its {which} choice would be dropped", which0: "first", which1: "second", whichN: "{n}th",
    weight: "Weight", dropped: "dropped if places are limited", promptPiece: "prompt",
    capacity: "Limited places: with this text last in a batch of {rows} lines ({tokens} tokens, {groups} groups) and {places} places per expert and group, {lost} of {all} choices ({share}) would be dropped. This server drops none.",
    tastes: "What experts like", tastesLead: "Counted over {comments} shipped comments. Pieces that an expert gets more often than its share come first.",
    showTastes: "Show what experts like", taste: "Expert {expert}", share: "share {share}", unused: "hardly ever chosen",
    times: "{times} of {of} times", space: "space", end: "end of the text",
    cannotReach: "The server cannot be reached. See whether it runs, and try again.",
    status_cut: "The server's answer broke off. Try again.",
    server: "Server", where: "Where", mend: "Mend", retry: "Trying again in {seconds} s…",
  },
};

const EXAMPLES = {
  document: ["진짜 재밌게 봤어요 또 보고 싶네요", "돈이 아깝다 시간도 아깝고", "배우들 연기가 너무 좋아서 끝까지 몰입했음",
    "지루해서 중간에 껐다", "기대 안 했는데 생각보다 괜찮네"],
  comments: ["좋은 기사 잘 읽었습니다", "기자가 발로 쓴 기사네"],
  premise: ["아이가 공원에서 공을 차고 있다.", "그는 어제 서울에 도착했다."],
  hypothesis: ["아이가 밖에서 놀고 있다.", "그는 아직 서울에 간 적이 없다."],
  sentence1: ["한 남자가 기타를 친다.", "비가 많이 온다."],
  sentence2: ["남자가 기타를 연주하고 있다.", "고양이가 잔다."],
  fill: "오늘 <extra_id_0> 정말 좋네요",
  experts: "배우들 연기가 너무 좋아서 끝까지 몰입해서 봤어요",
};

let language = "ko";
const listeners = [];

function stored(name, where = localStorage) { try { return where.getItem(name); } catch { return null; } }
function store(name, value, where = localStorage) { try { where.setItem(name, value); } catch { /* full */ } }

export function current() { return language; }
export function examples(name) { return EXAMPLES[name] ?? EXAMPLES.document; }
export function onLanguage(listener) { listeners.push(listener); }
export function startLanguage() { setLanguage(stored("kcmoe-language") ?? "ko"); }
export { stored, store };

export function setLanguage(name) {
  language = WORDS[name] ? name : "ko";
  store("kcmoe-language", language);
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = say(node.dataset.word);
  for (const listener of listeners) listener();
}

// The words of `key`, with {name} replaced by values.name.
export function say(key, values = {}) {
  const text = WORDS[language][key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => name in values ? String(values[name]) : whole);
}

export function has(key) { return key in WORDS[language]; }
export function count(number) { return number.toLocaleString(language === "ko" ? "ko-KR" : "en-US"); }
export function percent(share, digits = 1) { return `${(100 * share).toFixed(digits)}%`; }
