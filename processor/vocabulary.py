"""The words that tell a prompt's kind, in English, Spanish, French, German, Portuguese and some Swahili.

A word ends where it ends, or with `*` anywhere; two words joined by `_` stand next to each other. Accents are left out,
as they are from the text. Other scripts are looked for as pieces of text, since they are not parted into words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final

WORDS: Final[Mapping[str, str]] = {
    # Thinking is asked for: a proof, a cause, a choice between what conflicts.
    "reasoning": """
                prove proves proven proving provable proof* justif* tradeoff* trade_off trade_offs critiqu* strateg*
        implicat* implicit*
                consequenc* optimal* optimi* minimi* maximi* diagnos* root_cause cause causes hypothes* counterexampl*
        counterargument* paradox*
        contradict* infer* causal* confound* bias* negotiat* priorit* weigh weighing dilemma* conflict* reconcil*
        feasib* argu* compar* assess* evaluat* rigor* invariant* equilibri* incentiv* fallac* worst_case strongest
        ambig* recommend* estimat* propos* edge_case edge_cases tell_apart find_out show_that show_why how_can how_would
        how_should what_happened wrong fair trust survive happened uncertain* convinc* persuad* loophole* risk*
        drift* outlier* anomal* calibrat* faulty plausib* mislead* interpret* connotation register tone pun nuance*
        liar knights puzzle* riddle* objection* steelman rebut* flaw* subtle
        go_wrong pitfall* caveat* limitation* robust* inconsisten* discrepan* mismatch* suspicious suspect* blame
        reasoning criteria* unintended side_effect side_effects trap rank ranking explain_why what_would what_could
        demuestr* demostr* deduc* argument* estrateg* compens* hipotes* causa* evalu* propon* contradic* matiz*
        demontr* prouv* dedui* arbitrag* concili* evalue* propos* incertitud*
        beweis* begrund* abwag* widerspr* zielkonflikt* herleit* beurteil* bewert* vergleich* wie_kann
        demonstr* provar justifique avali* porque proponh*
        thibitisha linganisha tathmini kwa_nini pendekeza eleza
        """,
    "hypothetical": """
        if would could should might suppos* assum* imagin* given_that what_if even_if can_be
        si_no seria podria deberia supong* serait pourrait devrait suppos* wenn falls sollte angenommen
        seria poderia deveria ikiwa kama
        """,
    "planning": """
        design* architect* plan plans planning roadmap* schedul* rota rationing ration allocat* scenario* polic*
        contingenc* rollout* migrat* stakeholder* phased playbook* critical_path dependenc* tariff* amendment* taxonom*
        disen* planific* politic* racionamiento concev* concoi* planifi* rationnement
        entwirf* entwerf* entwickl* konzept* planung projet* planej* racionamento
        mpango mgao buni
        """,
    # A plausible wrong answer does harm.
    "expertise": """
        liab* enforceab* precedent* clause* breach* statut* jurisdiction* gdpr lawful* negligen* damages
        dose dosage mg contraindicat* symptom* differential pregnan* overdose trial diarrh* confused
        responsabil* clausula* contrat* haft* vertrag* dosis
        """,
    "mathematics": """
        theorem* lemma probab* chance chances odds likely expected_value expectation integral* derivat* deriv* polynom*
        matri* eigen* prime primes modulo converg* combinator* permutation* equation* inequal* geometr* varianc* bayes*
        regress* estimator* integer* digit* irrational* divisib* bijection* induction closed_form asymptot* median
        finite infinite if_and iff return_period combinations remainder
        differentiable continuous exists subset* vertices triangle* polygon* coin coins dice random* statistic*
        significan* correlat* likelihood posterior many_ways base_rate
        teorema* primo primos ecuacion* entero* irracional* matriz* probabilidad*
        theoreme* premier_nombre entier* irrationnel* matric*
        primzahl* gleichung* wahrscheinlich* ganze_zahl trendtest signifikant*
        equac* inteiro* numeros_primos
        uwezekano
        """,
    "code": """
        code function* bug bugs debug* refactor* implement* thread* async* sql regex* algorithm* api apis python rust
        golang javascript typescript java bash pandas kafka docker kubernetes postgres* redis nats mqtt endpoint*
        script* compil* exception* traceback* stacktrace unit_test pytest json_schema schema* parser* snippet* repo
        codigo funcion fonction funktion* skript programa funcao
        """,
    # What is hard about code, as opposed to that there is some.
    "systems": """
        race_condition race_conditions deadlock* livelock* concurren* thread_safe threads lock locks lock_free lockfree
        idempoten* consisten* distributed scalab* bottleneck* leak leaks leaking latency throughput fault_tolerant
        failover exactly_once undefined_behavior undefined_behaviour segfault* atomic* mutex* partition* replica* shard*
        linearizab* consensus vulnerab* injection amortized dynamic_programming time_complexity intermittent* streaming
        backpressure review flaky nondeterminis* cache_invalidation memory_safe memory hang hangs slow slower stale
        offline quota rate_limiter lookahead catastrophic backtrack* query_plan window_function recursive transaction*
        condicion_de concurrencia nebenlauf* verklemm* concorren*
        """,
    # What a small model does as well as a large one, on a text that is given.
    "given": """
        summar* translat* extract* classif* categor* label* proofread* rephras* rewrit* reword* paraphras* shorten*
        sentiment tldr tl_dr fix_the correct_the spell* grammar typo typos
        traduc* traduz* resum* resumen extraer extrai* clasif* corrig* reescrib* reescrev*
        tradui* corrige* reformul* orthograph* ortograf*
        ubersetz* fass* zusammenfass* extrahier* klassifizier* korrigier* rechtschreib* umformulier*
        tafsiri fupisha muhtasari
        """,
    # Likewise, without one.
    "simple": """
                convert* format* list renam* define definition tag tags synonym* alphabet* sort capital bullet_points
        bullet_list reformat*
        uppercase lowercase lower_case upper_case count turn_this put_this put_these make_this name names title
        subject_line copy_out pull_out which_is what_does how_do how_much stand_for docstring* in_order haiku joke
        plural opposite antonym* rhym* recipe* invitation slogan* tagline* caption* headline* reminder* pronounc*
        acronym*
        abbreviation* markdown yaml csv celsius fahrenheit add_up round_to percentage duplicates fill_in pick which_line
        comments poem greeting* birthday packing_list hello_world
        lista enumer* liste auflist* orodhesha toa
        """,
    "brief": """
        one_sentence two_sentences one_word one_line single_word short shorten* brief* quick* yes_or just only_the
        simple simply friendly politely nothing_else one_paragraph three_words give_me
        una_frase breve* una_palabra corto corta
        une_phrase bref brievement court courte un_mot
        einem_satz kurz* ein_wort
        uma_frase curto curta educada
        kwa_ufupi sentensi_moja
        """,
    # Small talk, and facts to be looked up: in the first words of a prompt.
    "trivial": """
        hi hello hey thanks thank good_morning how_are what_is what_s whats who when where which_year what_year
        what_time how_many how_old how_long how_far is_it how_do
        hola gracias que_es quien cuando donde cual_es
        bonjour merci qui quand quelle_est quel_est
        hallo danke wer wann was_ist
        ola obrigado obrigada quem quando qual_e
        habari mambo asante nini
        """,
    "constraints": """
        must without exactly at_most at_least no_more unless except neither nor avoid* cannot constraint* requirement*
        ensur* while whereas however but limited budget* deadline* never subject_to every each both only_if as_long
        condition* respect* satisf* not same so_that such_that within instead nobody keep keeping
        debe deben sin maximo minimo pero salvo presupuesto ningun exactamente
        doit doivent sans mais sauf exactement
        muss mussen ohne hochstens mindestens aber genau darf
        deve devem sem mas exceto orcamento
        lazima bila lakini
        """,
    # Verbs of which a prompt with several asks for several things.
    "tasks": """
        write draft list give explain say tell find show estimate propose suggest compute calculate justify describe
        identify compare invent decide infer derive prove fix make remove keep separate rewrite summarise summarize
        escribe explica propon calcula justifica indica compara
        ecris ecrivez explique expliquez proposez calculez justifiez dites comparez
        schreibe erklare begrunde berechne nenne vergleiche
        escreva explique calcule justifique compare
        andika eleza pendekeza
        """,
    "steps": """
        first then next finally afterwards second third also and_then step steps as_well lastly
        primero luego despues finalmente ademas
        ensuite puis enfin
        zuerst dann danach schliesslich ausserdem
        primeiro depois finalmente
        kisha halafu
        """,
}

PIECES: Final[Mapping[str, str]] = {
    "reasoning": "证明 为什么 说明 原因 权衡 推导 比较 分析 评估 "
    "أثبت برهن لماذا قارن حلل اقترح الأسباب सिद्ध क्यों तुलना मूल्यांकन विश्लेषण",
    "planning": "设计 规划 方案 策略 制定 صمم خطة استراتيجية योजना रणनीति",
    "mathematics": "概率 定理 方程 素数 无理数 积分 احتمال معادلة प्रायिकता समीकरण",
    "code": "代码 函数 算法 برنامج دالة कोड",
    "systems": "并发 死锁 竞态 竞争条件 分布式 تزامن",
    "given": "翻译 总结 概括 提取 分类 改写 ترجم لخص استخرج صنف अनुवाद सारांश",
    "simple": "列出 सूची",
    "brief": "一句话 简短 جملة_واحدة एक_वाक्य",
    "trivial": "你好 谢谢 什么是 是什么 谁 哪里 مرحبا شكرا ما_هي ما_هو من_هو नमस्ते धन्यवाद क्या_है कौन",
    "hypothetical": "如果 假设 إذا यदि अगर",
    "constraints": "必须 不能 至少 最多 但是 يجب بدون لكن बिना लेकिन",
    "steps": "首先 然后 最后 أولا ثم पहले फिर",
}

_ACCENTS: Final = str.maketrans("áàâãäéèêëíìîïóòôõöúùûüñç", "aaaaaeeeeiiiiooooouuuunc") | {ord("ß"): "ss"}


def plain(text: str) -> str:
    """Lower case and, of the letters of Western Europe, without accents."""
    text = text.lower()
    return text if text.isascii() else text.translate(_ACCENTS)


class Vocabulary:
    """Which kinds a text's words belong to. A look-up a word, whatever the size of the vocabulary."""

    def __init__(self, words: Mapping[str, str], pieces: Mapping[str, str]) -> None:
        self._exact: dict[str, set[str]] = {}
        self._stems: dict[str, set[str]] = {}
        for kind, listed in words.items():
            for word in listed.split():
                kinds = self._stems if word.endswith("*") else self._exact
                kinds.setdefault(word.rstrip("*"), set()).add(kind)
        self._lengths = sorted({len(stem) for stem in self._stems})
        self._pieces = [(p.replace("_", " "), kind) for kind, listed in pieces.items() for p in listed.split()]

    def kinds(self, word: str) -> set[str]:
        """Of one plain word: by itself, and by every stem that it begins with."""
        found = self._exact.get(word, _NONE)
        for length in self._lengths:
            if (more := self._stems.get(word[:length])) is not None:
                found = found | more
        return found

    def count(self, words: Iterable[str], text: str) -> dict[str, int]:
        """How many different words of each kind. `words` are plain; `text` is what they come from."""
        listed = list(words)
        counts: dict[str, int] = {}
        for word in set(listed):
            for kind in self.kinds(word):
                counts[kind] = counts.get(kind, 0) + 1
        for pair in {f"{one}_{two}" for one, two in pairwise(listed)}:
            for kind in self._exact.get(pair, _NONE):
                counts[kind] = counts.get(kind, 0) + 1
        if not text.isascii():
            for piece, kind in self._pieces:
                if piece in text:
                    counts[kind] = counts.get(kind, 0) + 1
        return counts


_NONE: Final[set[str]] = set()
VOCABULARY: Final = Vocabulary(WORDS, PIECES)
