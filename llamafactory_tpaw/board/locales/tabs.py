# SPDX-License-Identifier: Apache-2.0
"""Labels of the elements of the triplet browser and of the chat with two checkpoints."""

from .language import Translations, button, hinted, labelled, titled


_RUN = labelled(
    en=("Run", "Of the model chosen above."),
    ru=("Запуск", "Выбранной выше модели."),
    zh=("运行名称", "上方所选模型的运行。"),
    ko=("실행 이름", "위에서 선택한 모델의 실행."),
    ja=("ラン名", "上で選択したモデルのラン。"),
)

BROWSER: dict[str, Translations] = {
    "tpaw_browser_tab": titled(en="Triplets", ru="Тройки", zh="三元组", ko="트리플릿", ja="トリプレット"),
    "tpaw_browser_run": _RUN,
    "tpaw_browser_file": labelled(
        en=("Triplets", "Rounds of the run, or of the dataset folder."),
        ru=("Тройки", "Раунды запуска или каталога данных."),
        zh=("三元组", "该运行或数据目录中的各轮数据。"),
        ko=("트리플릿", "실행 또는 데이터 디렉토리의 라운드."),
        ja=("トリプレット", "ランまたはデータディレクトリのラウンド。"),
    ),
    "tpaw_browser_equal": labelled(
        en=("Equal", "Generated is the target."),
        ru=("Совпадающие", "Ответ равен целевому."),
        zh=("相同", "生成内容与目标一致。"),
        ko=("동일", "생성 응답이 목표와 같음."),
        ja=("同一", "生成が目標と同じもの。"),
    ),
    "tpaw_browser_truncated": labelled(
        en=("Truncated", "Cut at the length limit."),
        ru=("Обрезанные", "Обрезаны по длине."),
        zh=("截断", "达到长度上限。"),
        ko=("잘림", "길이 제한에서 잘림."),
        ja=("切断", "長さ制限で切れたもの。"),
    ),
    "tpaw_browser_search": labelled(
        en=("Search", "Text in prompt, target or generated."),
        ru=("Поиск", "Текст в промпте или ответах."),
        zh=("搜索", "提示词、目标或生成中的文本。"),
        ko=("검색", "프롬프트나 응답에 있는 텍스트."),
        ja=("検索", "プロンプトや応答に含まれる文字列。"),
    ),
    "tpaw_browser_page": titled(en="Page", ru="Страница", zh="页数", ko="페이지", ja="ページ"),
    "tpaw_browser_prev": button(en="Previous", ru="Назад", zh="上一页", ko="이전", ja="前へ"),
    "tpaw_browser_next": button(en="Next", ru="Вперёд", zh="下一页", ko="다음", ja="次へ"),
    "tpaw_browser_refresh": button(en="Refresh", ru="Обновить", zh="刷新", ko="새로고침", ja="更新"),
}

CHAT: dict[str, Translations] = {
    "tpaw_chat_tab": titled(en="Compare θ", ru="Сравнение θ", zh="对比 θ", ko="θ 비교", ja="θ の比較"),
    "tpaw_chat_run": _RUN,
    "tpaw_chat_first": labelled(
        en=("First checkpoint", "Answers on the left."),
        ru=("Первая контрольная точка", "Отвечает слева."),
        zh=("第一个检查点", "回答显示在左侧。"),
        ko=("첫 번째 체크포인트", "왼쪽에서 답합니다."),
        ja=("1 つ目のチェックポイント", "左側で回答します。"),
    ),
    "tpaw_chat_second": labelled(
        en=("Second checkpoint", "Answers on the right."),
        ru=("Вторая контрольная точка", "Отвечает справа."),
        zh=("第二个检查点", "回答显示在右侧。"),
        ko=("두 번째 체크포인트", "오른쪽에서 답합니다."),
        ja=("2 つ目のチェックポイント", "右側で回答します。"),
    ),
    "tpaw_chat_template": titled(
        en="Chat template", ru="Шаблон чата", zh="对话模板", ko="채팅 템플릿", ja="チャットテンプレート"
    ),
    "tpaw_chat_system": hinted(
        en=("System prompt", "System prompt (optional)"),
        ru=("Системный запрос", "Системный запрос (по желанию)"),
        zh=("系统提示词", "系统提示词（非必填）"),
        ko=("시스템 프롬프트", "시스템 프롬프트 (선택 사항)"),
        ja=("システムプロンプト", "システムプロンプト（オプション）"),
    ),
    "tpaw_chat_temperature": titled(en="Temperature", ru="Температура", zh="温度系数", ko="온도", ja="温度"),
    "tpaw_chat_top_p": titled(en="Top-p", ru="Лучшие-p", zh="Top-p 采样值", ko="Top-p", ja="Top-p"),
    "tpaw_chat_max_new_tokens": titled(
        en="Maximum new tokens",
        ru="Максимальное количество новых токенов",
        zh="最大生成长度",
        ko="응답의 최대 길이",
        ja="最大生成長",
    ),
    "tpaw_chat_trust_remote_code": titled(
        en="Trust remote code",
        ru="Доверять удалённому коду",
        zh="信任远程代码",
        ko="원격 코드 신뢰",
        ja="リモートコードを信頼",
    ),
    "tpaw_chat_load": button(
        en="Load both", ru="Загрузить обе", zh="加载两个模型", ko="모두 불러오기", ja="両方を読み込む"
    ),
    "tpaw_chat_unload": button(en="Unload", ru="Выгрузить", zh="卸载模型", ko="언로드", ja="アンロード"),
    "tpaw_chat_status": titled(en="Status", ru="Состояние", zh="状态", ko="상태", ja="ステータス"),
    "tpaw_chat_query": hinted(
        en=("Question", "Input..."),
        ru=("Вопрос", "Ввод..."),
        zh=("问题", "输入..."),
        ko=("질문", "입력..."),
        ja=("質問", "入力..."),
    ),
    "tpaw_chat_send": button(en="Ask both", ru="Спросить обе", zh="同时提问", ko="모두에게 질문", ja="両方に質問"),
    "tpaw_chat_clear": button(
        en="Clear history", ru="Очистить историю", zh="清空历史", ko="기록 지우기", ja="履歴を消去"
    ),
}

TABS = {**BROWSER, **CHAT}
